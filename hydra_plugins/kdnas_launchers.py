"""Where Hydra looks for launchers; the launchers themselves are in `kdnas.launchers`."""

from kdnas import launchers


class LocalLauncher(launchers.LocalLauncher):
    """`hydra/launcher=local`."""


class PoolLauncher(launchers.PoolLauncher):
    """`hydra/launcher=joblib`."""


class SlurmLauncher(launchers.SlurmLauncher):
    """`hydra/launcher=slurm`."""
