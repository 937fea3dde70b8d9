"""Runs jobs in joblib's worker processes."""

import logging
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher

from kdnas.app.launchers.gpus import gpus, take_gpu
from kdnas.app.launchers.returns import died, failed, portable
from kdnas.base.errors import require_whole
from kdnas.base.signals import ASKING, shielding

log = logging.getLogger(__name__)


class PoolLauncher(JoblibLauncher):
    """Runs jobs in joblib's workers, each with a share of the host's threads and, where there are GPUs, one of its own.

    When a worker dies, joblib ends the others too. The jobs that were running are then run again, one at a time, so
    that the job that kills its worker is found; they resume from their checkpoints.
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
            if len(ended) == before and not suspects:  # workers die before they begin a job
                suspects = left[:1]
            for number in suspects:
                self._together({number: jobs[number]}, workers, threads, ended)
                ended.setdefault(number, died("its process died (killed, or out of memory)"))
        return [ended[number] for number in jobs]

    def _together(
        self, jobs: Mapping[int, list[str]], workers: int, threads: int, ended: dict[int, JobReturn]
    ) -> list[int]:
        """Runs jobs in one pool and stores their returns; returns the jobs that were running if the pool broke."""
        from multiprocessing.resource_tracker import ensure_running

        from joblib import Parallel, delayed
        from joblib.externals.loky.backend import resource_tracker
        from joblib.externals.loky.process_executor import BrokenProcessPool

        assert self.config is not None
        sweep = Path(str(self.config.hydra.sweep.dir)).absolute()
        sweep.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="kdnas-pool-") as folder:
            place = Worker(Path(folder), sweep / ".gpus", gpus())
            work = partial(place.work, self.hydra_context, self.config, self.task_function, Singleton.get_state())
            # With one worker joblib would run the job in this process, which a crash of the job would end.
            pool = Parallel(
                n_jobs=max(2, workers),
                backend="loky",
                return_as="generator_unordered",
                batch_size=1,
                pre_dispatch="n_jobs",
                inner_max_num_threads=threads,
            )
            ensure_running()  # either tracker, started later, would unblock the signals
            resource_tracker.ensure_running()
            try:
                with shielding(*ASKING):  # joblib itself ends the workers
                    returns = pool(delayed(work)(number, overrides) for number, overrides in jobs.items())
                for number, returned in returns:
                    ended[number] = returned
            except BrokenProcessPool:
                log.warning("a worker died, and joblib ended the others; running their unfinished jobs again")
            return [number for number in jobs if place.mark(number).exists() and number not in ended]


@dataclass(frozen=True)
class Worker:
    """The function that runs in the workers of the pool, and its settings."""

    begun: Path
    """A folder with a file for each job that has begun."""
    slots: Path
    """A folder for the lock files by which workers divide the GPUs."""
    gpus: list[str]

    def mark(self, number: int) -> Path:
        return self.begun / str(number)

    def work(
        self, context: Any, config: Any, task: Any, state: Any, number: int, overrides: list[str]
    ) -> tuple[int, JobReturn]:
        from hydra_plugins.hydra_joblib_launcher._core import execute_job
        from tqdm import tqdm

        tqdm.set_lock(threading.RLock())  # avoids a warning about tqdm's shared semaphore
        take_gpu(self.slots, self.gpus)
        try:
            self.mark(number).touch()
            return number, portable(execute_job(number, overrides, context, config, task, state))
        except SystemExit as error:  # it would end the search
            return number, died(f"its process was asked to end ({type(error).__name__})")
        except Exception as error:  # outside of the task function: Hydra could not write its files
            return number, failed(error)
