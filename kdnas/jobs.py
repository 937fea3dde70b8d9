"""A job of a search: alone with its folder, and its candidates are told whatever becomes of it."""

from __future__ import annotations

import fcntl
import logging
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig

from kdnas.disk import disk_error
from kdnas.endings import asked_to_end
from kdnas.errors import ConfigError
from kdnas.locks import take
from kdnas.search.journal import open_storage
from kdnas.search.study import Study

log = logging.getLogger(__name__)


@contextmanager
def candidates(cfg: DictConfig) -> Iterator[list[int]]:
    """The trials that a job still has to tell of; none if another process did, as one that outlived its search.

    An error is told to the trial as the reason of its failure, and the traceback goes to the job's own log. In a gang
    it is not known whose fault it was: the search then runs its members one by one.

    Raises:
        ConfigError: the folder holds another search by now.
        DiskError: what was raised while a disk could not be written to.
        RuntimeError: what was told; a SystemExit would end the whole sweep.
    """
    folder = Path(cfg.paths.output)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        take(lock, fcntl.LOCK_EX, cfg.title)
        study = open_study(cfg)
        trials = study.trials()
        left = [number for number in cfg.search.trials if not trials[number].state.is_finished()]
        if not left:
            log.info("%s: has been told already", cfg.title)
        try:
            yield left
        except (Exception, SystemExit) as error:
            if asked_to_end(error):
                raise
            log_traceback(error)
            if met := disk_error(error, folder, Path(tempfile.gettempdir())):
                raise met from error
            if goes_on(error):
                raise
            told = f"{type(error).__name__}: {error}".strip()
            if len(cfg.search.trials) > 1:
                study.part(cfg.search.trials)
            for number in left if len(cfg.search.trials) == 1 else ():
                study.fail(number, told.splitlines()[0])
            raise RuntimeError(told) from error


def open_study(cfg: DictConfig, controller: Any = None) -> Study:
    """The study that a job of a search tells.

    Raises:
        ConfigError: the folder holds another search by now.
    """
    study = Study(open_storage(Path(cfg.search.dir)), cfg.stage, controller)
    if cfg.search.id != study.optuna.user_attrs.get("search"):
        raise ConfigError(f"search.id={cfg.search.id}: {cfg.search.dir} holds another search; this job is not of it")
    return study


def log_traceback(error: BaseException) -> None:
    """Writes where an error came from to the job's log file; a terminal gets a line, from the search."""
    trace = type(error), error, error.__traceback__
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, "this job ends here", (), trace)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def goes_on(error: BaseException) -> bool:
    """Whether an error ends the process and not the candidate: the machine's fault, or somebody's who ended the job."""
    if isinstance(error, OSError | SIGTERMException):
        return True  # a network away; Lightning's way to say that SLURM ends it
    raised_in = [frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    return raised_in.startswith("submitit.")  # the job's time is up, or it is back in the queue
