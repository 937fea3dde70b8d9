"""Registers the sweepers of `kdnas.sweeper` and `kdnas.multirun` with Hydra, which searches this package."""

from kdnas import multirun, sweeper


class KDNASSweeper(sweeper.KDNASSweeper):
    """`hydra/sweeper=kdnas`."""


class JobsSweeper(multirun.JobsSweeper):
    """`hydra/sweeper=jobs`."""
