"""The search as a Hydra sweeper: the controller chooses the candidates, the Hydra launcher runs their jobs."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from kdnas.app import suggestions
from kdnas.app.dispatch import Dispatcher, watching
from kdnas.app.launchers.returns import reason
from kdnas.app.overrides import quoted
from kdnas.app.search_folder import log_to, searching_in, set_aside
from kdnas.base.config import instantiate
from kdnas.base.disk import DiskError, disk_error
from kdnas.base.errors import ConfigError, mounted, require_switch
from kdnas.base.files import check_folder
from kdnas.base.identity import COMPARED, TRAINING, identity, require_same, sources, stamp
from kdnas.base.run_folder import read_prepared, write_prepared
from kdnas.base.screen import activity, board
from kdnas.search.job import Job

if TYPE_CHECKING:  # Hydra imports this module at every start: nothing heavy before a search begins
    from kdnas.search.ranking import Ranking
    from kdnas.search.schedule import Schedule
    from kdnas.search.search import SearchSettings
    from kdnas.search.study import Study

log = logging.getLogger(__name__)
OTHER_SEARCH = ", and its observations would not compare; use another search.dir, or search.fresh=true to start over"
"""The end of the error about a folder that holds a search with another setting."""


class KDNASSweeper(Sweeper):
    """Runs one search (`hydra/sweeper=kdnas`). Jobs report through the study; their return values are not used."""

    launcher: Launcher
    dispatcher: Dispatcher
    config: DictConfig
    folder: Path

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

    @property
    def title(self) -> str:
        """What is searched, for the first line of the log."""
        return f"a search of {self.config.search.episodes} x {self.config.search.candidates} candidates"

    def make_schedule(self) -> Schedule:
        return instantiate(self.config.search.schedule)

    def _search(self, arguments: list[str]) -> None:
        config, search = self.config, self.config.search
        log.info("%s: %s, in %s", config.name, self.title, search.dir)
        with activity("starting"):
            import optuna

            from kdnas.search.search import SearchSettings

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        refuse_sweeps(arguments)
        with mounted("search"):
            settings = SearchSettings(**{field.name: search[field.name] for field in fields(SearchSettings)})
        schedule, ranking = self.make_schedule(), instantiate(search.ranking)
        instantiate(config.reward)
        require_switch("search.fresh", search.fresh)
        instantiate(config.controller, _partial_=False, seed=config.seed)
        self.folder = check_folder("search.dir", search.dir)
        self.dispatcher = Dispatcher(self.launcher, arguments, self.folder, settings.retries)
        with searching_in(self.folder):
            self.dispatcher.prepare()
            self._run(settings, schedule, ranking)

    def _run(self, settings: SearchSettings, schedule: Schedule, ranking: Ranking) -> None:
        from kdnas.search.loop import Loop
        from kdnas.search.proposing import Proposer
        from kdnas.search.search import Search
        from kdnas.search.trial_log import FinalistLog, TrialLog

        space, controller = instantiate(self.config.space), instantiate(self.config.controller)
        mini, full = self._studies()
        with log_to(self.folder / "search.log"):
            log.info("the search space has %s architectures; searching in %s", space.size, self.folder)
            total = schedule.expected(settings)
            logs = {
                "mini": (mini, TrialLog(settings.episodes, total["mini"])),
                "full": (full, FinalistLog(mini, total["full"])),
            }
            for study, trial_log in logs.values():
                trial_log.skip_ended(study)

            def evaluate(jobs: Sequence[Job]) -> list[str]:
                if not jobs[0].trials:
                    return [self._run_apart(job) for job in jobs]
                with watching(*logs[jobs[0].kind]):
                    return [reason(job) for job in self.dispatcher.launch(jobs)]

            proposer = Proposer(space, controller, self.config.seed)
            Loop(Search(settings, mini, full, proposer, ranking), schedule, evaluate).run()
            self._report(mini, full, ranking)

    def _studies(self) -> tuple[Study, Study]:
        """Opens the studies of candidates and finalists; refuses candidates that were scored with other settings."""
        from kdnas.app.kinds import staged
        from kdnas.search.journal import open_storage
        from kdnas.search.study import Study

        prepared = read_prepared(self.folder / "prepare")
        if self.config.search.fresh:
            set_aside(self.folder)
            (self.folder / "prepare").mkdir(exist_ok=True)
            write_prepared(self.folder / "prepare", prepared)
        mini, full = (Study(open_storage(self.folder), kind) for kind in ("mini", "full"))
        rows, precision = prepared.pop("rows"), mini.precision or prepared["precision"]
        configs = [staged(self.config, Job(kind)) for kind in ("mini", "full")]
        for config in configs:
            if config.trainer.precision == "auto":
                config.trainer.precision = precision
        stamps = [stamp(sources(config)) for config in configs]
        finalists_rows = rows if stamps[0] == stamps[1] else stamps[1]  # the prepare job has not read others
        settings = identity(configs[0], rows, COMPARED)
        if mini.settings is None:
            mini.settings = settings
        else:
            require_same(settings, mini.settings, "the search in this folder was made", OTHER_SEARCH)
        if full.count_only(identity(configs[1], finalists_rows, TRAINING)):
            log.info("the finalists are distilled anew: their settings have changed")
        name = mini.search or f"search-{uuid.uuid4().hex[:8]}"  # never a number
        for study in (mini, full):
            study.search = name  # jobs of a search moved aside cannot report to this one
            study.store_prepared(prepared)
        return mini, full

    def _run_apart(self, job: Job) -> str:
        """Runs a job without trials, which the search can do without; returns why it failed, if it did."""
        try:
            (returned,) = self.dispatcher.launch([job])
            failure = reason(returned)
        except (ConfigError, DiskError) as error:  # the report is worth more
            failure = str(error)
        if failure:
            log.warning("the job `%s` failed, and the search goes on without it: %s", job.kind, failure)
        return failure

    def _report(self, candidates: Study, finalists: Study, ranking: Ranking) -> None:
        from kdnas import reports

        results = reports.Results.of(self.config.name, candidates, finalists, self.config.search.finalists, ranking)
        written = reports.write(self.folder, results)
        hydra, again = self.config.hydra, suggestions.distillation_overrides(self.dispatcher.overrides, self.config)
        distil = [*suggestions.command(hydra), *again]
        for part in (
            reports.answer(results),
            reports.drawn(results, board.console),
            reports.commands(results, self.folder, distil, suggestions.fine_tuning(self.config, hydra)),
            reports.files(results, written),
        ):
            log.info("\n%s", part.rstrip(), extra={"plain": True})


def refuse_sweeps(overrides: list[str]) -> None:
    """Refuses sweep overrides (`key=a,b`): a search chooses the architectures itself, and takes one value a key."""
    for one in OverridesParser.create().parse_overrides(overrides):
        if one.is_sweep_override():
            raise ConfigError(
                f"{one.input_line}: search.py takes one value a key; run it once for each, or list the values of "
                f"a dimension as space.<dimension>=[...]; as one value: {quoted(str(one.input_line))}"
            )
