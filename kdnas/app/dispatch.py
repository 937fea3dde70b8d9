"""Sends a search's jobs to a Hydra launcher, repeats those that failed because of a disk, and shows how they go on."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from kdnas.app.launchers.returns import DiedError
from kdnas.base.background import repeating
from kdnas.base.disk import DiskError, disk_error
from kdnas.base.errors import ConfigError
from kdnas.base.screen import activity
from kdnas.base.signals import GOES_ON
from kdnas.search.job import Job

if TYPE_CHECKING:  # Hydra imports this module at every start: nothing heavy before a search begins
    from kdnas.models.architecture import Architecture
    from kdnas.search.trial_log import TrialLog

log = logging.getLogger(__name__)
LOOK_EVERY = 1.0
"""Seconds between two readings of the study while jobs run."""


@dataclass(frozen=True)
class Dispatcher:
    """Runs jobs of the search in `folder`, with the overrides of its command line before their own.

    A job is repeated `retries` times that died or met a full disk.
    """

    launcher: Launcher
    overrides: Sequence[str]
    folder: Path
    retries: int

    def launch(self, jobs: Sequence[Job]) -> list[JobReturn]:
        """Runs jobs to their end; repeats the jobs that failed because a disk could not be written to.

        Raises:
            ConfigError: the launcher cannot run jobs. Their trials stay running, for the same command to go on.
            DiskError: the disk still cannot be written to. The trials stay running too.
            SystemExit: a job called `exit`.
        """
        returned = self._run(jobs)
        for left in reversed(range(1 + self.retries)):
            met = {i: error for i, job in enumerate(returned) if (error := self._disk_error(job))}
            if not met:
                break
            first = next(iter(met.values()))
            if not left:
                raise first
            log.warning("%s; running %s again", first, "it" if len(jobs) == 1 else f"{len(met)} of {len(jobs)} jobs")
            for i, again in zip(met, self._run([jobs[i] for i in met]), strict=True):
                returned[i] = again
        return returned

    def _disk_error(self, returned: JobReturn) -> DiskError | None:
        """Returns the disk error that ended a job, if any; tests the folder's disk if the process died silently."""
        if returned.status != JobStatus.FAILED:
            return None
        died = isinstance(returned._return_value, DiedError)
        return disk_error(returned._return_value, *([self.folder] if died else []))

    def _run(self, jobs: Sequence[Job]) -> list[JobReturn]:
        try:
            return list(self.launcher.launch([[*self.overrides, job.to_override()] for job in jobs], initial_job_idx=0))
        except ConfigError:
            raise
        except Exception as error:
            if met := disk_error(error, self.folder):  # Hydra could not write its own files
                return [JobReturn(status=JobStatus.FAILED, _return_value=met)] * len(jobs)
            log.exception("the launcher gave up")
            raise ConfigError(
                f"hydra/launcher: {type(error).__name__}: {error}; run the same command again to continue"
            ) from error
        except SystemExit:
            sys.exit(f"ended by a job; {GOES_ON}")

    def prepare(self, architectures: Sequence[Architecture] = ()) -> None:
        """Runs the prepare job, again if its process dies; raises the error that it failed with.

        Args:
            architectures: those that a user has listed, which are checked beside the space.
        """
        job = Job("prepare", architectures=tuple(architectures))
        elsewhere = not isinstance(self.launcher, BasicLauncher)
        note = partial(last_line, self.folder / job.name) if elsewhere else None
        for left in reversed(range(1 + self.retries)):
            with activity("preparing", note=note):
                (returned,) = self.launch([job])
            if returned.status != JobStatus.FAILED or not (left and isinstance(returned._return_value, DiedError)):
                break
            log.warning("%s; trying again", returned._return_value)
        if returned.status == JobStatus.FAILED:
            error = returned._return_value
            died = isinstance(error, DiedError)
            raise ConfigError(f"the prepare job: {error}; run the same command again to continue") if died else error


@contextmanager
def watching(trial_log: TrialLog) -> Iterator[None]:
    """Logs each trial that ends, from a background thread, while jobs run in this or other processes."""
    with activity(trial_log.noun, total=trial_log.total, note=lambda: trial_log.summary) as shown:
        shown.begin_at(len(trial_log.logged))

        def look() -> None:
            with suppress(OSError):  # the search itself will raise it
                trial_log.log_ended()
            shown.done = len(trial_log.logged)

        try:
            with repeating(look, LOOK_EVERY):
                yield
        finally:
            look()


def last_line(folder: Path) -> str:
    """Returns the last line that a job in another process wrote to its log; empty if there is none yet."""
    logs = sorted(folder.glob("*.log"))
    lines = logs[-1].read_text(errors="replace").splitlines() if logs else []
    return lines[-1].partition(" - ")[2] if lines else ""
