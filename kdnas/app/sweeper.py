"""The search as a Hydra sweeper: the controller chooses the candidates, the Hydra launcher runs their jobs.

Hydra imports this at every start, so nothing heavy is imported until a search begins.
"""

from __future__ import annotations

import logging
import re
import shutil
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from kdnas.app import suggestions
from kdnas.app.launchers import DiedError, reason
from kdnas.app.names import named, spans
from kdnas.app.words import quoted
from kdnas.base.config import flatten, instantiate, plain
from kdnas.base.disk import DiskError, disk_error
from kdnas.base.errors import ConfigError, require_switch, shown
from kdnas.base.files import check_folder
from kdnas.base.identity import differing, identity, sources, stamp
from kdnas.base.locks import free, holders
from kdnas.base.run_folder import read_prepared, write_prepared
from kdnas.base.screen import Lines, activity, board, is_shown
from kdnas.base.signals import GOES_ON

if TYPE_CHECKING:
    from kdnas.search.loop import Gang, SearchSettings
    from kdnas.search.narrator import Narrator
    from kdnas.search.study import Study

log = logging.getLogger(__name__)
SEARCHING = ("search", "space", "controller", "reward", "hydra")
"""The parts of a search's config that a single distillation has no use for, except `FINALISTS`."""
FINALISTS = "search.stages.full"
"""The settings of a full distillation within the search's config."""
DISTILLED = ("module", "data", "trainer", "seed")
"""The parts of a config that decide the results of a candidate's training."""
COMPARED = (*DISTILLED, "space", "reward", "latency")
"""The parts of a config that must be equal for the rewards of two candidates to be comparable."""
LOOK_EVERY = 1.0
"""Seconds between two readings of the study while jobs run."""


class KDNASSweeper(Sweeper):
    """Runs one search (`hydra/sweeper=kdnas`). Jobs report through the study; their return values are not used."""

    def __init__(self) -> None:
        self.launcher: Launcher
        self.config: DictConfig
        self.overrides: list[str]
        self.search: str
        self.folder: Path

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        board.narrated = True
        try:
            self._search(arguments)
        except ConfigError:
            raise
        except Exception as error:
            if met := disk_error(error, *([self.folder] if hasattr(self, "folder") else [])):
                raise met from error
            raise

    def _search(self, arguments: list[str]) -> None:
        search = self.config.search
        log.info(
            "%s: a search of %s x %s candidates, in %s",
            self.config.name,
            search.episodes,
            search.candidates,
            search.dir,
        )
        with activity("starting"):
            import optuna

            from kdnas.app.preflight import staged
            from kdnas.search.journal import open_storage
            from kdnas.search.loop import Search, SearchSettings
            from kdnas.search.narrator import FinalistNarrator, Narrator
            from kdnas.search.study import Study

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.overrides = arguments
        refuse_sweeps(arguments)
        settings = SearchSettings(**{field.name: search[field.name] for field in fields(SearchSettings)})
        instantiate(self.config.reward)
        require_switch("search.fresh", search.fresh)
        controller = instantiate(self.config.controller)
        instantiate(self.config.controller, _partial_=False, seed=self.config.seed)
        folder = check_folder("search.dir", search.dir)
        with in_folder(folder):
            self.folder = folder
            self._prepare(settings.retries)
            prepared = read_prepared(self.folder / "prepare")
            space = instantiate(self.config.space)
            if search.fresh:
                set_aside(self.folder)
                (self.folder / "prepare").mkdir(exist_ok=True)
                write_prepared(self.folder / "prepare", prepared)
            mini, full = (Study(open_storage(self.folder), stage) for stage in ("mini", "full"))
            rows, precision = prepared.pop("rows"), mini.optuna.user_attrs.get("precision", prepared["precision"])
            mini_stage, full_stage = (staged(self.config, stage) for stage in ("mini", "full"))
            places = [stamp(sources(stage)) for stage in (mini_stage, full_stage)]
            finalists_rows = rows if places[0] == places[1] else places[1]  # the prepare job has not read others
            refuse_changes(mini, decisive(mini_stage, rows, precision, COMPARED))
            if full.renew(decisive(full_stage, finalists_rows, precision, DISTILLED)):
                log.info("the finalists are distilled anew: their settings have changed")
            self.search = mini.optuna.user_attrs.get("search") or f"search-{uuid.uuid4().hex[:8]}"  # never a number
            for study in (mini, full):  # so that jobs of an earlier search, moved aside, cannot report to this one
                study.optuna.set_user_attr("search", self.search)
            for study in (mini, full):
                study.settle(prepared)
            with log_to(self.folder / "search.log"):
                log.info("searching %s architectures in %s", space.size, self.folder)
                narrators = {"mini": (mini, Narrator(settings)), "full": (full, FinalistNarrator(settings, mini))}
                for study, narrator in narrators.values():
                    narrator.skip(study)

                def evaluate(stage: str, gangs: list[Gang]) -> list[str]:
                    with watching(*narrators[stage]):
                        return [
                            reason(job) for job in self._launch([self._job(stage, gang, settings) for gang in gangs])
                        ]

                loop = Search(settings, mini, full, space, controller, self.config.seed, evaluate)
                loop.run_episodes()
                self._measure_again(mini)  # before their rewards choose the finalists
                loop.run_finalists()
                self._measure_again(mini, full)
                self._report(mini, full)

    def _report(self, candidates: Study, finalists: Study) -> None:
        """Writes the report, and logs the best candidate, the table and the commands to go on with."""
        from kdnas import reports

        results = reports.Results.of(self.config.name, candidates, finalists, self.config.search.finalists)
        written = reports.write(self.folder, results)
        hydra = self.config.hydra
        distil = [
            *suggestions.command(hydra),
            *distillation_overrides(self.overrides, flatten(plain(self.config.search.stages.full))),
        ]
        finetune = suggestions.fine_tuning(self.config, hydra)
        for part in (
            reports.answer(results),
            reports.drawn(results, board.console),
            reports.commands(results, self.folder, distil, finetune),
            reports.files(results, written),
        ):
            log.info("\n%s", part.rstrip(), extra={"plain": True})

    def _measure_again(self, *studies: Study) -> None:
        """Runs a job, through the launcher, that repeats the measurements that were made on a busy host."""
        if any(study.busy for study in studies):
            try:
                (returned,) = self._launch([["stage=latency", "job=latency", f"search.id={self.search}"]])
                failure = reason(returned)
            except (ConfigError, DiskError) as error:  # the report is worth more
                failure = str(error)
            if failure:
                log.warning("latencies of a busy host could not be measured again: %s", failure)

    def _job(self, stage: str, gang: Gang, settings: SearchSettings) -> list[str]:
        """Returns the overrides of the job that runs these trials. With the user's own before them, they repeat it."""
        numbers = [trial.number for trial in gang]
        architectures = ",".join(
            "{" + ",".join(f"{name}:{value}" for name, value in trial.params.items()) + "}" for trial in gang
        )
        names = named(numbers)
        title = "finalist" if stage == "full" else "trial"
        title += f" {spans(numbers)}"
        return [
            f"stage={stage}",
            f"job={stage}/{names}",
            f"title='{title}'",
            f"architectures=[{architectures}]",
            f"search.trials=[{','.join(str(number) for number in numbers)}]",
            f"search.id={self.search}",
        ]

    def _launch(self, jobs: list[list[str]]) -> list[JobReturn]:
        """Runs jobs to their end; repeats the jobs that failed because a disk could not be written to.

        Raises:
            ConfigError: the launcher cannot run jobs. Their trials stay running, for the same command to go on.
            DiskError: the disk still cannot be written to. The trials stay running too.
            SystemExit: a job called `exit`.
        """
        returned = self._run(jobs)
        for left in reversed(range(1 + self.config.search.retries)):
            met = {i: error for i, job in enumerate(returned) if (error := self._met_a_disk(job))}
            if not met:
                break
            first = next(iter(met.values()))
            if not left:
                raise first
            log.warning("%s; running %s again", first, "it" if len(jobs) == 1 else f"{len(met)} of {len(jobs)} jobs")
            for i, again in zip(met, self._run([jobs[i] for i in met]), strict=True):
                returned[i] = again
        return returned

    def _met_a_disk(self, returned: JobReturn) -> DiskError | None:
        """Returns the disk error that ended a job, if any; tests the folder's disk if the process died silently."""
        if returned.status != JobStatus.FAILED:
            return None
        died = isinstance(returned._return_value, DiedError)
        return disk_error(returned._return_value, *([self.folder] if died else []))

    def _run(self, jobs: list[list[str]]) -> list[JobReturn]:
        """Runs jobs to their end, without repeating any."""
        try:
            return list(self.launcher.launch([[*self.overrides, *job] for job in jobs], initial_job_idx=0))
        except ConfigError:
            raise
        except Exception as error:
            if met := disk_error(error, self.folder):  # Hydra could not write its own files
                return [JobReturn(status=JobStatus.FAILED, _return_value=met)] * len(jobs)
            log.exception("the launcher gave up")
            raise ConfigError(f"hydra/launcher: {type(error).__name__}: {error}; the same command goes on") from error
        except SystemExit:
            sys.exit(f"ended by a job; {GOES_ON}")

    def _prepare(self, retries: int) -> None:
        """Runs the prepare job, again if its process dies; raises the error that it failed with."""
        job = ["stage=prepare", "job=prepare", "title=preparing"]
        elsewhere = not isinstance(self.launcher, BasicLauncher)
        note = partial(last_line, self.folder / "prepare") if elsewhere else None
        for left in reversed(range(1 + retries)):
            with activity("preparing", note=note):
                (returned,) = self._launch([job])
            if returned.status != JobStatus.FAILED or not (left and isinstance(returned._return_value, DiedError)):
                break
            log.warning("%s; trying again", returned._return_value)
        if returned.status == JobStatus.FAILED:
            error = returned._return_value
            died = isinstance(error, DiedError)
            raise ConfigError(f"stage=prepare: {error}; the same command goes on") if died else error


def refuse_sweeps(overrides: list[str]) -> None:
    """Refuses sweep overrides (`key=a,b`): a search chooses the architectures itself, and takes one value a key."""
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.is_sweep_override():
            raise ConfigError(
                f"{override.input_line}: search.py takes one value a key; run it once for each, or list the values of "
                f"a dimension as space.<dimension>=[...]; as one value: {quoted(str(override.input_line))}"
            )


@contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """Makes and locks the search folder; removes a new one again if the search is refused before it begins."""
    from kdnas.search.journal import JOURNAL

    made = [path for path in (folder, *folder.parents) if not path.exists()]
    place = folder.with_name(f".{folder.name}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = place.open("a")
    except OSError as error:
        raise ConfigError(f"search.dir={folder}: cannot be written to ({error.strerror})") from error
    with lock:
        if not free(lock):
            raise ConfigError(f"search.dir={folder}: another search is running in it: {holders(lock)}")
        try:
            yield
        except ConfigError:
            if made and not (folder / JOURNAL).exists():
                shutil.rmtree(folder)
                place.unlink()
                with suppress(OSError):
                    for path in made[1:]:
                        path.rmdir()
            raise


def set_aside(folder: Path) -> None:
    """Moves the files of an earlier search, if any, to a folder beside the search folder.

    Refused while a job of the earlier search runs, which would write into the new search. A job that is still queued
    will find another search there, and end.
    """
    from kdnas.search.journal import JOURNAL

    if (folder / JOURNAL).exists():
        for path in folder.glob("*/*/.lock"):
            with path.open("a") as lock:
                if not free(lock):
                    raise ConfigError(
                        f"search.fresh=true: a job of the earlier search runs in {path.parent}; end it first: "
                        f"{holders(lock)}"
                    )
        taken = {path.name for path in folder.parent.iterdir()}
        spare = next(name for i in range(1, 10**6) if (name := f"{folder.name}.old-{i}") not in taken)
        folder.rename(folder.with_name(spare))
        folder.mkdir()
        log.info("moved the earlier search to %s", folder.with_name(spare))


def distillation_overrides(overrides: list[str], full: Mapping[str, Any]) -> list[str]:
    """Returns the overrides of `search.py` that `train.py` needs to repeat a full distillation.

    Overrides of `search.stages.full.<key>` become overrides of `<key>`.

    Args:
        full: the settings of the stage `full`, by dotted key; overrides of the same keys elsewhere are left out.
    """
    chosen: list[str] = []
    for word in overrides:
        key = str(OverridesParser.create().parse_override(word).key_or_group)
        if word.startswith(f"+{FINALISTS}."):
            chosen.append(f"++{word.removeprefix(f'+{FINALISTS}.')}")
        elif key.startswith(FINALISTS) or (re.split(r"[./@]", key)[0] not in SEARCHING and key not in full):
            chosen.append(word)
    return chosen


def refuse_changes(study: Study, settings: dict[str, Any]) -> None:
    """Refuses to go on under settings other than those the study was made with; keeps the first run's in the study.

    Args:
        settings: everything that decides the rewards (see `kdnas.base.identity`).

    Raises:
        ConfigError: the settings differ, so rewards would not be comparable.
    """
    known = study.optuna.user_attrs.get("settings")
    if known is None:
        study.optuna.set_user_attr("settings", settings)
    elif difference := differing(known, settings):
        key, there, here = difference
        raise ConfigError(
            f"{key}={shown(here)}: the search in this folder was made with {shown(there)}, and its observations would "
            "not compare; use another search.dir, or search.fresh=true to start over"
        )


def decisive(config: DictConfig, rows: str, precision: str, parts: Sequence[str]) -> dict[str, Any]:
    """Returns what decides the results of a search stage (see `identity`), with the precision in place of `auto`."""
    settings = identity(config, rows, parts)
    return settings | ({"trainer.precision": precision} if settings["trainer.precision"] == "auto" else {})


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Writes the log lines of kdnas to a file too. Hydra's jobs reset the root logger, not the logger `kdnas`."""
    handler = logging.FileHandler(path)
    handler.setFormatter(Lines("%Y-%m-%d %H:%M:%S"))
    handler.addFilter(is_shown)
    logger = logging.getLogger("kdnas")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


@contextmanager
def watching(study: Study, narrator: Narrator) -> Iterator[None]:
    """Logs each trial that ends, from a background thread, while jobs run in this or other processes."""
    ended = threading.Event()

    with activity(narrator.what, total=narrator.total, note=lambda: narrator.standing) as shown:
        shown.begin_at(len(narrator.told))

        def look() -> None:
            with suppress(OSError):  # the search itself will raise it
                narrator.narrate(study)
            shown.done = len(narrator.told)

        def watch() -> None:
            while not ended.wait(LOOK_EVERY):
                look()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            look()


def last_line(folder: Path) -> str:
    """Returns the last line that a job in another process wrote to its log; empty if there is none yet."""
    logs = sorted(folder.glob("*.log"))
    said = logs[-1].read_text(errors="replace").splitlines() if logs else []
    return said[-1].partition(" - ")[2] if said else ""
