"""A job of a search: it locks its folder, and reports its trials to the study even if it fails."""

import logging
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig

from kdnas.base.config import instantiate
from kdnas.base.disk import disk_error
from kdnas.base.errors import ConfigError
from kdnas.base.locks import alone
from kdnas.base.run_folder import LOCK
from kdnas.base.signals import asked_to_end
from kdnas.search.job import Job
from kdnas.search.journal import open_storage
from kdnas.search.study import Study

log = logging.getLogger(__name__)


@contextmanager
def reporting(cfg: DictConfig, job: Job) -> Iterator[Study | None]:
    """Locks the job's folder and yields the study that its trials report to; None if they have all finished.

    An error fails the trial, with the error as its reason, and the traceback goes to the job's log. In a gang, the
    trial that caused the error is not known: the search then runs its members one by one.

    A ConfigError says that the search folder holds another search by now, a DiskError that a disk could not be written
    to, and a RuntimeError that the job failed: a SystemExit would end the whole sweep.
    """
    folder = Path(cfg.paths.output)
    with alone(folder / LOCK, job.title):
        study = open_study(cfg, job, instantiate(cfg.controller)(seed=cfg.seed))
        trials = study.trials()
        left = [number for number in job.trials if not trials[number].state.is_finished()]
        if not left:
            log.info("%s: its trials have finished already", job.title)
        try:
            yield study if left else None
        except (Exception, SystemExit) as error:
            if asked_to_end(error):
                raise
            log_traceback(error)
            if met := disk_error(error, folder, Path(tempfile.gettempdir())):
                raise met from error
            if goes_on(error):
                raise
            message = f"{type(error).__name__}: {error}".strip()
            if len(job.trials) > 1:
                study.split(job.trials)
            else:
                study.fail(job.trials[0], message.splitlines()[0])
            raise RuntimeError(message) from error


def open_study(cfg: DictConfig, job: Job, controller: Any = None) -> Study:
    """Opens the study that jobs of this kind report to; refuses a folder that holds another search by now."""
    study = Study(open_storage(Path(cfg.search.dir)), job.kind, controller)
    if job.search != study.search:
        raise ConfigError(f"job.search={job.search}: {cfg.search.dir} holds another search; this job is not of it")
    return study


def log_traceback(error: BaseException) -> None:
    """Writes an error's traceback to the job's log file only; on the terminal, the search prints a line."""
    trace = type(error), error, error.__traceback__
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, "this job ends here", (), trace)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def goes_on(error: BaseException) -> bool:
    """Returns whether an error is of the machine or the queue, so that the trial does not fail and can be resumed."""
    if isinstance(error, OSError | SIGTERMException):
        return True  # as a lost network file system; Lightning raises SIGTERMException when SLURM ends a job
    raised_in = [frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    return raised_in.startswith("submitit.")  # the job's time limit is reached, or it is requeued
