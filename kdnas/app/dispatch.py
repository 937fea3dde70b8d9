"""Sends a search's jobs to a Hydra launcher, and repeats those that failed because of a disk.

Hydra imports this at every start, so nothing heavy is imported until a search begins.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from kdnas.app.launchers import DiedError
from kdnas.app.watching import last_line
from kdnas.base.disk import DiskError, disk_error
from kdnas.base.errors import ConfigError
from kdnas.base.screen import activity
from kdnas.base.signals import GOES_ON
from kdnas.search.job import Job

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dispatcher:
    """Runs jobs with the overrides of the search's command line before their own.

    Args:
        launcher: the Hydra launcher.
        overrides: the overrides of the command line.
        folder: the search folder.
        retries: how often a job is repeated that died or met a full disk.
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
        """Runs jobs to their end, without repeating any."""
        try:
            return list(self.launcher.launch([[*self.overrides, job.to_override()] for job in jobs], initial_job_idx=0))
        except ConfigError:
            raise
        except Exception as error:
            if met := disk_error(error, self.folder):  # Hydra could not write its own files
                return [JobReturn(status=JobStatus.FAILED, _return_value=met)] * len(jobs)
            log.exception("the launcher gave up")
            raise ConfigError(f"hydra/launcher: {type(error).__name__}: {error}; the same command goes on") from error
        except SystemExit:
            sys.exit(f"ended by a job; {GOES_ON}")

    def prepare(self) -> None:
        """Runs the prepare job, again if its process dies; raises the error that it failed with."""
        job = Job("prepare")
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
            raise ConfigError(f"the prepare job: {error}; the same command goes on") if died else error
