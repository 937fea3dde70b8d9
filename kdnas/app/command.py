"""A command: composes a config by Hydra and does the work, with one line for bad input, full disks and signals."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from kdnas.app.overrides import checked, leave_out, refuse_unused
from kdnas.base.config import CONF, instantiate, mistake
from kdnas.base.disk import DiskError, disk_error
from kdnas.base.errors import ConfigError
from kdnas.base.folders import BusyFolderError
from kdnas.base.run_folder import withdraw
from kdnas.base.screen import activity, aside, board
from kdnas.base.signals import GOES_ON, asked_to_end
from kdnas.search.job import Job

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Command:
    """A command: call the object in a shell's entry point, or `run` with the arguments from Python."""

    config: str
    """The name of a file in `conf/`."""
    task: Callable[[DictConfig], Any]
    group: str | None = None
    """A config group whose choice may be the first word."""
    searches: bool = False
    """Whether the command runs many jobs, as a search does."""
    others: Mapping[str, Command] = field(default_factory=dict)
    """Commands of their own, by the first word."""

    def __call__(self) -> None:
        """Runs the command with the arguments of this process, and ends the process on an error of the user's."""
        logging.raiseExceptions = False  # on a full disk, logging fails too
        try:
            self.run(sys.argv[1:])
        except (ConfigError, DiskError) as error:
            hint = f"; when that is mended, {GOES_ON}" if isinstance(error, DiskError) else ""
            sys.exit(f"error: {error}{hint}" if board.foreground else 1)  # of a DDP training, only the first prints it

    def run(self, words: Sequence[str]) -> list[Any]:
        """Runs the command with overrides and Hydra's flags; returns the task's result for each config that was run."""
        if words and words[0] in self.others:
            return self.others[words[0]].run(words[1:])
        results: list[Any] = []
        refused: list[ConfigError | DiskError] = []
        begun = False

        def job(cfg: DictConfig) -> Any:
            nonlocal begun
            begun = True
            try:
                results.append(self._do(cfg))
                return results[-1]
            except (ConfigError, DiskError) as error:
                if HydraConfig.get().mode == RunMode.MULTIRUN:
                    raise
                refused.append(error)  # raised below: Hydra would print all overrides first
                return None

        job.__module__ = self.config  # Hydra names the job and its log file after it
        board.narrated = False
        board.foreground = "LOCAL_RANK" not in os.environ  # Lightning sets it where it starts more
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # makes Hydra raise its errors, not print them
        try:
            sys.argv[1:] = checked(self._chosen(words), CONF, sweeps=self.searches)
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=self.config)(job)()
        except (ConfigError, OmegaConfBaseException) as error:
            raise mistake(error) from error
        except HydraException as error:
            raise ConfigError(one_line(error)) from error
        except ValueError as error:
            if begun:
                raise
            raise ConfigError(" ".join(str(error).split())) from error  # Hydra refuses a combination of flags
        except OSError as error:
            if begun or isinstance(error, DiskError):
                raise
            raise ConfigError(f"{error.filename}: cannot be written to ({error.strerror})") from error
        if refused:
            raise refused[0]
        return results

    def _chosen(self, words: Sequence[str]) -> list[str]:
        """Returns the arguments with a bare first word, if any, written as the choice of the command's group."""
        first = words[0] if words else ""
        bare = self.group is not None and first.isidentifier()
        return [f"{self.group}={first}", *words[1:]] if bare else list(words)

    def _do(self, cfg: DictConfig) -> Any:
        """Does the work of one config; removes the folder that Hydra made for a run that is refused."""
        single = HydraConfig.get().mode != RunMode.MULTIRUN
        try:
            # What a job of a search logs in another process than the search's goes to its log file.
            with aside(self.searches and not board.narrated), starting(cfg):
                if "job" in cfg:  # a run
                    words = list(HydraConfig.get().overrides.task)
                    leave_out(cfg, words)
                    if not cfg.job.trials:  # the overrides of candidates are the search's own
                        refuse_unused(cfg, words, self.searches)
                return self.task(cfg)
        except (ConfigError, OmegaConfBaseException) as error:
            if single and not isinstance(error, BusyFolderError):
                withdraw()
            raise mistake(error) from error  # a SystemExit would end the other jobs of a multirun too
        except SystemExit as error:
            if asked := asked_to_end(error):
                raise asked from None
            raise
        except Exception as error:
            if not single and self.config == "train":  # a search logs its jobs' errors itself
                log.exception("this job failed")
            if met := disk_error(error, Path(HydraConfig.get().runtime.output_dir)):
                raise met from error
            raise


@contextmanager
def starting(cfg: DictConfig) -> Iterator[None]:
    """Logs what starts, before the imports that take seconds; silent in the jobs of a search."""
    if board.narrated or not board.foreground:
        yield
        return
    title = Job.of(cfg).title or cfg.title if "job" in cfg else None  # a table has none
    if title:
        log.info("%s: loading PyTorch and what builds on it", title)
    with activity(title or "starting"):
        yield


def one_line(error: HydraException) -> str:
    """Returns Hydra's error message in one line."""
    cause = error.__cause__
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and isinstance(cause.parent_node, DictConfig):
        there = cause.parent_node
        adds = f"; '+{cause.full_key}=...' adds it" * ("_target_" in there or not there)
        return f"{cause.full_key}: not a key; there is {', '.join(map(str, there)) or 'none yet'}{adds}"
    return " ".join(str(error).partition("Config search path:")[0].split())


def _run(cfg: DictConfig) -> dict[str, float]:
    from kdnas.app.run import run  # PyTorch and what builds on it, only once the config is composed

    return run(cfg)


search = Command("search", _run, searches=True)
train = Command("train", _run)
proxy = Command("proxy", _run, searches=True)
evaluate = Command("evaluate", lambda cfg: instantiate(cfg.evaluation), group="evaluation", others={"proxy": proxy})
