"""The common entry point of the commands, with the handling of bad input.

Bad input ends in one line on stderr, `error: key=value: must be ...`, exit status 1, and leaves no folder behind.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from kdnas.app.unused import leave_out, refuse_unused
from kdnas.app.words import checked
from kdnas.base.config import mistake
from kdnas.base.disk import DiskError, disk_error
from kdnas.base.errors import ConfigError
from kdnas.base.folders import BusyFolderError
from kdnas.base.run_folder import withdraw
from kdnas.base.screen import activity, aside, board
from kdnas.base.signals import GOES_ON, asked_to_end
from kdnas.search.job import Job

log = logging.getLogger(__name__)
CONF = Path(__file__).resolve().parents[2] / "conf"


def command(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Wraps a task function in `hydra.main`, with one-line errors for bad input, full disks and signals.

    Args:
        config_name: the name of a file in `conf/`.
    """

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        begun, searching = False, config_name == "search"

        @functools.wraps(task)
        def job(cfg: DictConfig) -> Any:
            nonlocal begun
            begun = True
            try:
                # What a job of a search logs in another process than the search's goes to its log file.
                with aside(searching and not board.narrated), first_words(title_of(cfg)):
                    if "job" in cfg:  # a run
                        words = list(HydraConfig.get().overrides.task)
                        leave_out(cfg, words)
                        if not cfg.job.trials:  # the overrides of candidates are the search's own
                            refuse_unused(cfg, words, searching)
                    return task(cfg)
            except (ConfigError, OmegaConfBaseException) as error:
                if HydraConfig.get().mode == RunMode.MULTIRUN:
                    raise mistake(error) from error  # a SystemExit would end the other jobs too
                if not isinstance(error, BusyFolderError):
                    withdraw()
                refuse(mistake(error))
            except SystemExit as error:
                if asked := asked_to_end(error):
                    raise asked from None
                raise
            except Exception as error:
                met = disk_error(error, Path(HydraConfig.get().runtime.output_dir))
                several = HydraConfig.get().mode == RunMode.MULTIRUN
                if met and not several:
                    refuse(f"{met}; when that is mended, {GOES_ON}")
                if several and config_name == "train":  # a search logs its jobs' errors itself
                    log.exception("this job failed")
                if met:
                    raise met from error
                raise

        @functools.wraps(task)
        def main() -> None:
            nonlocal begun
            begun = False
            board.foreground = "LOCAL_RANK" not in os.environ  # set in the processes that Lightning starts
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # makes Hydra raise its errors, not print them
            logging.raiseExceptions = False  # on a full disk, logging fails too
            try:
                sys.argv[1:] = checked(sys.argv[1:], CONF, sweeps=searching)
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
            except (ConfigError, OmegaConfBaseException) as error:
                sys.exit(f"error: {mistake(error)}")
            except HydraException as error:
                sys.exit(f"error: {hydra_message(error)}")
            except DiskError as error:
                sys.exit(f"error: {error}; when that is mended, {GOES_ON}")
            except ValueError as error:
                if begun:
                    raise
                sys.exit(f"error: {' '.join(str(error).split())}")  # Hydra refuses a combination of flags
            except OSError as error:
                if begun:
                    raise
                sys.exit(f"error: {error.filename}: cannot be written to ({error.strerror})")

        return main

    return decorate


def refuse(message: object) -> NoReturn:
    """Ends the command with an error line; of several processes that train together, only the first prints it."""
    sys.exit(f"error: {message}" if board.foreground else 1)


def title_of(cfg: DictConfig) -> str | None:
    """Returns the title of a run; None for a command that prints only a table."""
    return Job.of(cfg).title or cfg.title if "job" in cfg else None


@contextmanager
def first_words(title: str | None) -> Iterator[None]:
    """Logs what starts, before the imports that take seconds; silent in the jobs of a search.

    Args:
        title: the title of the run; None for a command that prints only a table.
    """
    if board.narrated or not board.foreground:
        yield
        return
    if title is not None:
        log.info("%s: loading PyTorch and what builds on it", title)
    with activity(title or "starting"):
        yield


def hydra_message(error: HydraException) -> str:
    """Returns Hydra's error message in one line."""
    cause = error.__cause__
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and isinstance(cause.parent_node, DictConfig):
        adds = f"; '+{cause.full_key}=...' adds it" * ("_target_" in cause.parent_node)
        return f"{cause.full_key}: not a key; there is {', '.join(map(str, cause.parent_node))}{adds}"
    return " ".join(str(error).partition("Config search path:")[0].split())
