"""Where Hydra looks for sweepers; the sweepers themselves are in `kdnas.sweeper` and `kdnas.multirun`."""

from kdnas import multirun, sweeper


class KDNASSweeper(sweeper.KDNASSweeper):
    """`hydra/sweeper=kdnas`."""


class JobsSweeper(multirun.JobsSweeper):
    """`hydra/sweeper=jobs`."""
