"""Where Hydra looks for launchers; the launchers themselves are in `kdnas.app.launchers`."""

from kdnas.app import launchers


class LocalLauncher(launchers.LocalLauncher):
    """`hydra/launcher=local`."""


class PoolLauncher(launchers.PoolLauncher):
    """`hydra/launcher=joblib`."""


class SlurmLauncher(launchers.SlurmLauncher):
    """`hydra/launcher=slurm`."""
