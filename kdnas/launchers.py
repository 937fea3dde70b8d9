"""Hydra launchers that lose nothing but the job that dies.

What a job has to say it tells the study. These launchers only say when every job has ended and what it died of, if it
did: as a FAILED `JobReturn`, never as an exception that takes the other jobs' returns along.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import subprocess
import tempfile
import time
import uuid
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
from omegaconf import OmegaConf

from kdnas.errors import ConfigError, require_whole
from kdnas.files import free, whole

log = logging.getLogger(__name__)
OUTCOME = "outcome.json"
PAUSES = (5, 30, 120)
"""Seconds before a submission that failed is tried again."""


class RelayedError(RuntimeError):
    """What a job raised in another process, as `<type>: <message>`."""


class DiedError(RelayedError):
    """A job's process ended without a word of its own."""


def died(reason: str) -> JobReturn:
    return JobReturn(status=JobStatus.FAILED, _return_value=DiedError(reason))


def told(returned: JobReturn) -> JobReturn:
    """What of a job's end is sure to be readable in another process: a config or an exception may not be."""
    if returned.status != JobStatus.FAILED:
        return JobReturn(status=returned.status)
    error = returned._return_value
    known = error if type(error) is ConfigError else RelayedError(f"{type(error).__name__}: {error}")
    return JobReturn(status=JobStatus.FAILED, _return_value=known)


class SubmititLauncher(BaseSubmititLauncher):
    """Jobs that submitit starts and that outlive the search: one that is started again waits for those still there.

    Which job is whose is kept in `.submitit/jobs.json` of the search folder, by the name in its overrides (`job=`).
    """

    LOOK_EVERY: float
    """Seconds between two looks at which jobs are still there."""
    AT_ONCE: int | None = None
    """How many to start before one has ended; None leaves that to the queue."""

    @abstractmethod
    def alive(self, ids: set[str]) -> set[str]:
        """Those of the jobs that are waiting or running."""

    @abstractmethod
    def fate(self, job: str) -> str:
        """What became of a job that ended without a result."""

    def __call__(self, *arguments: Any, **named: Any) -> JobReturn:
        """The job itself, in its own process. What it leaves for `_returned` is data: nobody unpickles it."""
        from submitit import JobEnvironment

        returned = told(super().__call__(*arguments, **named))
        error = returned._return_value
        outcome = None if error is None else {"refused": isinstance(error, ConfigError), "text": str(error)}
        with whole(JobEnvironment().paths.folder / OUTCOME) as path:
            path.write_text(json.dumps(outcome))
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
            ended = self._see_through(jobs, running, register)
        except KeyboardInterrupt:
            time.sleep(1)  # what ends with the search has ended
            if ids := " ".join(sorted(self.alive({job.id for job in running.values()}))):
                log.warning("these jobs go on, and the same command waits for them; end them yourself if not: %s", ids)
            raise
        return [ended[name] for name in jobs]

    def _see_through(
        self, jobs: Mapping[str, list[str]], running: dict[str, Job], register: Register
    ) -> dict[str, JobReturn]:
        """Starts what is not running yet, and waits until all have ended."""
        ended: dict[str, JobReturn] = {}
        while len(ended) < len(jobs):
            waiting = {name: jobs[name] for name in jobs if name not in running and name not in ended}
            room = len(waiting) if self.AT_ONCE is None else max(0, self.AT_ONCE - len(running))
            if room and waiting:
                folder = register.path.with_name(uuid.uuid4().hex[:8])
                started = self._insist({name: waiting[name] for name in list(waiting)[:room]}, folder)
                register.add(started)
                running |= started
            time.sleep(self.LOOK_EVERY)
            there = self.alive({job.id for job in running.values()})
            for name in [name for name, job in running.items() if job.id not in there]:
                ended[name] = self._returned(running.pop(name))
        return ended

    def _insist(self, jobs: dict[str, list[str]], folder: Path) -> dict[str, Job]:
        """Submits jobs, again if the cluster has no time for it. What was submitted all the same does no harm."""
        for pause in PAUSES:
            try:
                return self._submit(jobs, folder)
            except Exception as error:
                log.warning("submitting failed (%s); trying again in %s s", str(error).strip().splitlines()[-1], pause)
                time.sleep(pause)
        return self._submit(jobs, folder)

    def _submit(self, jobs: dict[str, list[str]], folder: Path) -> dict[str, Job]:
        """Starts jobs, as one array. Their folder is new: SLURM's ids can come again, and with them old results."""
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
            name: Job(job.job_id, str(folder / "%j"), each)
            for job, (name, each) in zip(submitted, jobs.items(), strict=True)
        }

    def _returned(self, job: Job) -> JobReturn:
        """What a job that has ended gave back."""
        from submitit.core.utils import JobPaths

        paths = JobPaths(job.folder, job.id)
        if not (paths.folder / OUTCOME).is_file():
            return died(f"{self.fate(job.id)}; its log is {paths.stderr}")
        outcome = json.loads((paths.folder / OUTCOME).read_text())
        if outcome is None:
            return JobReturn(status=JobStatus.COMPLETED)
        kind = ConfigError if outcome["refused"] else RelayedError
        return JobReturn(status=JobStatus.FAILED, _return_value=kind(outcome["text"]))


def job_of(overrides: Sequence[str]) -> str:
    """The name of a job of the search, from the overrides that make it."""
    return next(override.removeprefix("job=") for override in reversed(overrides) if override.startswith("job="))


def same(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two jobs of a name do the same: all of a search do, whatever else may have changed when it goes on."""
    marks = [[override for override in overrides if override.startswith("search.id=")] for overrides in (one, other)]
    return marks[0] == marks[1] if any(marks) else list(one) == list(other)


@dataclass(frozen=True)
class Job:
    """A job that was submitted.

    Args:
        id: the cluster's, or that of a process.
        folder: of submitit's files, with %j for the id.
        overrides: what it was to do.
    """

    id: str
    folder: str
    overrides: list[str]


class Register:
    """Which jobs a search has submitted, on disk.

    Args:
        path: of the file; made when absent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        known = json.loads(path.read_text()) if path.is_file() else {}
        self.jobs = {name: Job(**job) for name, job in known.items()}

    def add(self, jobs: Mapping[str, Job]) -> None:
        self.jobs |= jobs
        with whole(self.path) as path:
            path.write_text(json.dumps({name: asdict(job) for name, job in self.jobs.items()}, indent=1))


class LocalLauncher(SubmititLauncher):
    """Processes of this host, each with a log of its own: what SLURM does, without SLURM.

    Args:
        n_jobs: how many run at once.
        params: submitit's.
    """

    _EXECUTOR = "local"
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
        take_gpu(Path(str(self.config.hydra.sweep.dir)).absolute() / ".gpus", self.gpus)  # submitit hides them all
        return super().__call__(*arguments, **named)

    def alive(self, ids: set[str]) -> set[str]:
        return {pid for pid in ids if b"submitit" in command_line(pid)}

    def fate(self, job: str) -> str:
        return f"process {job} ended without a result (killed, or it ran out of memory or of time)"


def command_line(pid: str) -> bytes:
    """Of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


class SlurmLauncher(SubmititLauncher):
    """Jobs of a SLURM cluster."""

    _EXECUTOR = "slurm"
    LOOK_EVERY = 5.0

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self._said: set[str] = set()

    def alive(self, ids: set[str]) -> set[str]:
        command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T|%r"]
        listed = ask(command) if ids else ""
        if listed is None:  # the controller is away: as long as it is, nobody knows better
            return ids
        jobs = {job: (state, why) for job, state, why in (line.split("|", 2) for line in listed.splitlines())}
        for state, why in (jobs[job] for job in sorted(ids & jobs.keys())):
            if state == "PENDING" and why not in self._said:
                self._said.add(why)
                log.info("SLURM lets jobs wait: %s", why)
        return ids & jobs.keys()

    def fate(self, job: str) -> str:
        told = ask(["sacct", "--allocations", "--noheader", "--parsable2", "--format=State,ExitCode", f"--jobs={job}"])
        state = f" ({told.split()[-1].replace('|', ', exit code ')})" if told and told.split() else ""
        return f"SLURM job {job} ended without a result{state}"


def ask(command: list[str]) -> str | None:
    """What a command of SLURM prints; None if it fails, or is not there."""
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        log.debug("%s: %s", command[0], said.strip())
        return None
    return listed.stdout


class PoolLauncher(JoblibLauncher):
    """joblib's processes, each with its share of this host's threads, and with a GPU of its own where there are some.

    A worker that dies takes the others along. What was running then is run again, one job at a time, so that the one at
    fault is known; the others go on from their checkpoints.
    """

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        from joblib import cpu_count

        n_jobs = self.joblib["n_jobs"]
        require_whole("hydra.launcher.n_jobs", 1 if n_jobs == -1 else n_jobs, 1)
        workers = (len(gpus()) or cpu_count()) if n_jobs == -1 else n_jobs
        threads = max(1, cpu_count() // workers)
        jobs = {number: list(overrides) for number, overrides in enumerate(job_overrides)}
        ended: dict[int, JobReturn] = {}
        while left := [number for number in jobs if number not in ended]:
            before = len(ended)
            suspects = self._together({i: jobs[i] for i in left}, workers, threads, ended) if workers > 1 else left[:1]
            if len(ended) == before and not suspects:  # workers die before they have begun: none would ever
                suspects = left[:1]
            for number in suspects:
                self._together({number: jobs[number]}, workers, threads, ended)
                ended.setdefault(number, died("its process died (killed, or out of memory)"))
        return [ended[number] for number in jobs]

    def _together(
        self, jobs: Mapping[int, list[str]], workers: int, threads: int, ended: dict[int, JobReturn]
    ) -> list[int]:
        """Runs jobs in one pool and notes what they return; if the pool broke, returns those that it was running."""
        from joblib import Parallel, delayed
        from joblib.externals.loky.process_executor import BrokenProcessPool

        assert self.config is not None
        sweep = Path(str(self.config.hydra.sweep.dir)).absolute()
        sweep.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="kdnas-pool-") as folder:
            place = Worker(Path(folder), sweep / ".gpus", gpus())
            work = partial(place.work, self.hydra_context, self.config, self.task_function, Singleton.get_state())
            # With one worker joblib would run the job in this process, and the job could take it down.
            pool = Parallel(
                n_jobs=max(2, workers),
                backend="loky",
                return_as="generator_unordered",
                batch_size=1,
                pre_dispatch="n_jobs",
                inner_max_num_threads=threads,
            )
            try:
                for number, returned in pool(delayed(work)(number, overrides) for number, overrides in jobs.items()):
                    ended[number] = returned
            except BrokenProcessPool:
                log.warning("a worker died; running its jobs again")
            return [number for number in jobs if place.mark(number).exists() and number not in ended]


@dataclass(frozen=True)
class Worker:
    """What runs in a process of the pool.

    Args:
        begun: a folder to mark the jobs in that have begun.
        slots: a folder for the locks by which workers share out the GPUs.
        gpus: as CUDA_VISIBLE_DEVICES names them.
    """

    begun: Path
    slots: Path
    gpus: list[str]

    def mark(self, number: int) -> Path:
        return self.begun / str(number)

    def work(
        self, context: Any, config: Any, task: Any, state: Any, number: int, overrides: list[str]
    ) -> tuple[int, JobReturn]:
        from hydra_plugins.hydra_joblib_launcher._core import execute_job

        self.mark(number).touch()
        take_gpu(self.slots, self.gpus)
        try:
            return number, told(execute_job(number, overrides, context, config, task, state))
        except SystemExit as error:  # would end the search
            return number, died(f"its process was asked to end ({type(error).__name__})")


def take_gpu(slots: Path, gpus: list[str]) -> None:
    """Shows this process one GPU only, for as long as it lives; it must not have looked at any before.

    Args:
        slots: a folder for the locks by which processes share them out.
        gpus: as CUDA_VISIBLE_DEVICES names them.
    """
    if HELD or not gpus:
        return
    slots.mkdir(parents=True, exist_ok=True)
    for slot in itertools.count():
        file = (slots / str(slot)).open("a")
        if free(file):
            HELD.append(file)
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
            return
        file.close()


HELD: list[IO[str]] = []
"""The lock on this process's slot."""


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(i) for i in range(torch.cuda.device_count())] if named is None else [n for n in named.split(",") if n]
