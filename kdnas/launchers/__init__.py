"""Hydra launchers that lose nothing but the job that dies.

What a job has to say it tells the study. These launchers only say when every job has ended and what it died of, if it
did: as a FAILED `JobReturn`, never as an exception that takes the other jobs' returns along.
"""

from kdnas.launchers.pool import PoolLauncher
from kdnas.launchers.queue import LocalLauncher, SlurmLauncher
from kdnas.launchers.returns import DiedError, RelayedError, reason

__all__ = ["DiedError", "LocalLauncher", "PoolLauncher", "RelayedError", "SlurmLauncher", "reason"]
