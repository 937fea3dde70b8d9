"""Hydra launchers with which a job that dies does not affect the others.

Jobs report their results to the study. The launchers return when every job has ended, with a FAILED `JobReturn` for
each job that died or failed, and never raise an exception that would lose the other jobs' returns.
"""

from kdnas.app.launchers.pool import PoolLauncher
from kdnas.app.launchers.queue import LocalLauncher, SlurmLauncher
from kdnas.app.launchers.returns import DiedError, RelayedError, reason

__all__ = ["DiedError", "LocalLauncher", "PoolLauncher", "RelayedError", "SlurmLauncher", "reason"]
