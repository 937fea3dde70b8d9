"""Registers the sweepers of `kdnas.app.sweeper` and `kdnas.app.multirun` with Hydra, which searches this package."""

from kdnas.app import multirun, sweeper


class KDNASSweeper(sweeper.KDNASSweeper):
    """`hydra/sweeper=kdnas`."""


class JobsSweeper(multirun.JobsSweeper):
    """`hydra/sweeper=jobs`."""
