"""Runs jobs through submitit, in processes or in SLURM's queue, that outlive the search."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
import uuid
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
from omegaconf import OmegaConf

from kdnas.app.launchers.gpus import gpus, take_gpu
from kdnas.app.launchers.returns import died, failed, from_json, portable, to_json
from kdnas.base.disk import disk_error
from kdnas.base.errors import require_whole
from kdnas.base.files import write_json
from kdnas.base.locks import command
from kdnas.base.signals import Ended, raise_ended, shielding
from kdnas.search.job import Job

log = logging.getLogger(__name__)
OUTCOME = "outcome.json"
PAUSES = (5, 30, 120)
"""Seconds before a failed submission is tried again."""
PATIENCE = 10.0
"""Seconds to wait for jobs to end after a signal."""


class SubmititLauncher(BaseSubmititLauncher):
    """Starts jobs by submitit. They outlive the search, and a search that is started again waits for them.

    Submitted jobs are stored in `.submitit/jobs.json` in the search folder, by the name of the job in their overrides.
    """

    LOOK_EVERY: float
    """Seconds between two checks of which jobs still exist."""
    AT_ONCE: int | None = None
    """The most jobs that run at once; None leaves the limit to the queue."""
    _started: Mapping[str, Submitted] = {}
    """The jobs of the latest submission."""
    END: str
    """The command that ends a job, to be followed by its id."""

    @abstractmethod
    def alive(self, ids: set[str]) -> set[str]:
        """Returns the jobs that are pending or running."""

    def leave(self, ids: set[str], error: KeyboardInterrupt) -> set[str]:
        """Returns the jobs that go on when a signal ends the search."""
        return self.alive(ids)

    @abstractmethod
    def fate(self, job: str) -> str:
        """Describes the end of a job that left no result."""

    def __call__(self, *arguments: Any, **named: Any) -> JobReturn:
        """Runs the job in its own process, and writes its outcome as JSON, so that `_returned` unpickles nothing."""
        from submitit import JobEnvironment

        # SLURM sends SIGCONT just before the signal of the time limit. submitit's handler logs SIGCONT, and an
        # exception raised while it logs, as by the second signal, would be lost.
        signal.signal(signal.SIGCONT, signal.SIG_DFL)
        try:
            returned = portable(super().__call__(*arguments, **named))
        except Exception as error:  # outside of the task function: Hydra could not write its files
            returned = failed(error)
        write_json(JobEnvironment().paths.folder / OUTCOME, to_json(returned))
        return returned

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        assert self.config is not None
        folder = Path(str(self.config.hydra.sweep.dir)).absolute() / ".submitit"
        folder.mkdir(parents=True, exist_ok=True)
        register = Register(folder / "jobs.json")
        jobs = {job_of(overrides): list(overrides) for overrides in job_overrides}
        known = {name: job for name, job in register.jobs.items() if name in jobs and same(job.overrides, jobs[name])}
        there = self.alive({job.id for job in known.values()})
        running = {name: job for name, job in known.items() if job.id in there}
        for name, job in running.items():
            log.info("job %s (%s) is still there from an earlier run of this search: waiting for it", job.id, name)
        try:
            ended = self._finish(jobs, running, register)
        except KeyboardInterrupt as error:
            register.add(self._started)
            if left := self.leave({job.id for job in {**running, **self._started}.values()}, error):
                ids = " ".join(sorted(left))
                error.add_note(f"jobs that still run, for the next run to wait for: {ids} ({self.END} ends one)")
            raise
        return [ended[name] for name in jobs]

    def _finish(
        self, jobs: Mapping[str, list[str]], running: dict[str, Submitted], register: Register
    ) -> dict[str, JobReturn]:
        ended: dict[str, JobReturn] = {}
        while len(ended) < len(jobs):
            waiting = {name: jobs[name] for name in jobs if name not in running and name not in ended}
            room = len(waiting) if self.AT_ONCE is None else max(0, self.AT_ONCE - len(running))
            if room and waiting:
                folder = register.path.with_name(uuid.uuid4().hex[:8])
                started = self._submit_again({name: waiting[name] for name in list(waiting)[:room]}, folder)
                register.add(started)
                running |= started
            time.sleep(self.LOOK_EVERY)
            there = self.alive({job.id for job in running.values()})
            for name in [name for name, job in running.items() if job.id not in there]:
                ended[name] = self._returned(running.pop(name))
        return ended

    def _submit_again(self, jobs: dict[str, list[str]], folder: Path) -> dict[str, Submitted]:
        """Submits jobs, again after a failure. A job that was submitted despite an error finds its trials finished."""
        for pause in PAUSES:
            try:
                return self._start(jobs, folder)
            except Exception as error:
                if disk_error(error):
                    raise
                log.warning("submitting failed (%s); trying again in %s s", str(error).strip().splitlines()[-1], pause)
                time.sleep(pause)
        return self._start(jobs, folder)

    def _start(self, jobs: dict[str, list[str]], folder: Path) -> dict[str, Submitted]:
        """Submits jobs with the terminal's signals blocked: they outlive it, and an interrupt loses no ids."""
        with shielding(signal.SIGINT, signal.SIGHUP):
            self._started = self._submit(jobs, folder)
        return self._started

    def _submit(self, jobs: dict[str, list[str]], folder: Path) -> dict[str, Submitted]:
        """Submits jobs as one array, in a new folder: SLURM may reuse ids, and would find the results of older jobs."""
        import submitit

        own = {name: value for name, value in self.params.items() if name not in ("submitit_folder", "max_num_timeout")}
        shared = set(OmegaConf.structured(BaseQueueConf))
        again = self.params.get("max_num_timeout")
        limit = {} if again is None else {f"{self._EXECUTOR}_max_num_timeout": again}
        executor = submitit.AutoExecutor(folder / "%j", cluster=self._EXECUTOR, **limit)
        executor.update_parameters(**{n if n in shared else f"{self._EXECUTOR}_{n}": v for n, v in own.items()})
        state = Singleton.get_state()
        arguments = [(each, "hydra.sweep.dir", i, name, state) for i, (name, each) in enumerate(jobs.items())]
        submitted = executor.map_array(self, *zip(*arguments, strict=True))
        ids = ", ".join(job.job_id for job in submitted)
        log.info("submitted %s jobs to %s: %s", len(jobs), self._EXECUTOR, ids)
        return {
            name: Submitted(job.job_id, str(folder / "%j"), each)
            for job, (name, each) in zip(submitted, jobs.items(), strict=True)
        }

    def _returned(self, job: Submitted) -> JobReturn:
        from submitit.core.utils import JobPaths

        paths = JobPaths(job.folder, job.id)
        if not (paths.folder / OUTCOME).is_file():
            return died(f"{self.fate(job.id)}; its log is {paths.stderr}")
        return from_json(json.loads((paths.folder / OUTCOME).read_text()))


def job_of(overrides: Sequence[str]) -> str:
    """Returns the name of a job, from its overrides: a search's own, else a digest, as for `train.py -m`."""
    if job := Job.in_overrides(overrides):
        return job.name
    return hashlib.sha256("\0".join(overrides).encode()).hexdigest()[:16]


def same(one: Sequence[str], other: Sequence[str]) -> bool:
    """Returns whether two jobs of equal names are the same: by the search's id, or else by all overrides."""
    first, second = ((job := Job.in_overrides(overrides)) and job.search for overrides in (one, other))
    return first == second if first or second else list(one) == list(other)


@dataclass(frozen=True)
class Submitted:
    """A submitted job: its id in the queue or of its process, submitit's folder (with %j for the id), its overrides."""

    id: str
    folder: str
    overrides: list[str]


class Register:
    """The jobs that a search has submitted, stored in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        known = json.loads(path.read_text()) if path.is_file() else {}
        self.jobs = {name: Submitted(**job) for name, job in known.items()}

    def add(self, jobs: Mapping[str, Submitted]) -> None:
        self.jobs |= jobs
        write_json(self.path, {name: asdict(job) for name, job in self.jobs.items()})


class LocalLauncher(SubmititLauncher):
    """Runs jobs in processes of this host, each with its own log, as SLURM would; `params` are submitit's."""

    _EXECUTOR = "local"
    END = "kill"
    LOOK_EVERY = 0.5

    def __init__(self, n_jobs: int = 1, **params: Any) -> None:
        super().__init__(**params)
        self.AT_ONCE = n_jobs
        self.gpus: list[str] = []

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        require_whole("hydra.launcher.n_jobs", self.AT_ONCE, 1)
        self.gpus = gpus()
        return super().launch(job_overrides, initial_job_idx)

    def __call__(self, *arguments: Any, **named: Any) -> JobReturn:
        assert self.config is not None
        signal.signal(signal.SIGTERM, raise_ended)  # submitit would ignore it, and `kill` must end a job
        take_gpu(Path(str(self.config.hydra.sweep.dir)).absolute() / ".gpus", self.gpus)  # submitit hides all GPUs
        try:
            return super().__call__(*arguments, **named)
        except Ended as error:
            sys.exit(str(error))

    def leave(self, ids: set[str], error: KeyboardInterrupt) -> set[str]:
        """Ends the jobs if the signal was Ctrl-C."""
        deadline = time.monotonic() + PATIENCE
        while isinstance(error, Ended) and error.number == signal.SIGINT and time.monotonic() < deadline:
            if not (ids := self.alive(ids)):
                break
            for job in ids:  # repeatedly: a process that is starting has no handler yet
                with suppress(ProcessLookupError):
                    os.kill(int(job), signal.SIGTERM)
            time.sleep(0.2)
        return self.alive(ids)

    def alive(self, ids: set[str]) -> set[str]:
        return {pid for pid in ids if "submitit" in command(int(pid))}

    def fate(self, job: str) -> str:
        return f"process {job} ended without a result (killed, or it ran out of memory or of time)"


class SlurmLauncher(SubmititLauncher):
    """Runs jobs on a SLURM cluster."""

    _EXECUTOR = "slurm"
    END = "scancel"
    LOOK_EVERY = 5.0

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self._logged: set[str] = set()

    def alive(self, ids: set[str]) -> set[str]:
        squeue = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T|%r"]
        listed = ask(squeue) if ids else ""
        if listed is None:  # SLURM's controller does not answer: assume that all jobs exist
            return ids
        jobs = {job: (state, why) for job, state, why in (line.split("|", 2) for line in listed.splitlines())}
        for state, why in (jobs[job] for job in sorted(ids & jobs.keys())):
            if state == "PENDING" and why not in self._logged:
                self._logged.add(why)
                log.info("SLURM keeps jobs waiting: %s", why)
        return ids & jobs.keys()

    def fate(self, job: str) -> str:
        sacct = ["sacct", "--allocations", "--noheader", "--parsable2", "--format=State,ExitCode", f"--jobs={job}"]
        listed = ask(sacct)
        state = f" ({listed.split()[-1].replace('|', ', exit code ')})" if listed and listed.split() else ""
        return f"SLURM job {job} ended without a result{state}"


def ask(command: list[str]) -> str | None:
    """Runs a command of SLURM and returns its output; None if it fails or does not exist."""
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        message = getattr(error, "stderr", None) or str(error)
        log.debug("%s: %s", command[0], message.strip())
        return None
    return listed.stdout
