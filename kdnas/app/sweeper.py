"""The search as a Hydra sweeper: the controller chooses the candidates, the Hydra launcher runs their jobs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
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
from kdnas.app.search_folder import log_to, searching_in
from kdnas.base.config import instantiate
from kdnas.base.disk import DiskError, disk_error
from kdnas.base.errors import ConfigError, mounted, require, require_switch
from kdnas.base.files import check_folder
from kdnas.base.screen import activity, board
from kdnas.search.job import Job

if TYPE_CHECKING:  # Hydra imports this module at every start: nothing heavy before a search begins
    from kdnas.models.architecture import Architecture
    from kdnas.search.ranking import Ranking
    from kdnas.search.schedule import Schedule
    from kdnas.search.search import SearchSettings
    from kdnas.search.study import Study
    from kdnas.search.trial_log import TrialLog

log = logging.getLogger(__name__)


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
        log.info("%s: %s, in %s", self.config.name, self.title, self.config.search.dir)
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
        """The subject of the search, for the first line of the log."""
        return f"a search of {self.config.search.episodes} x {self.config.search.candidates} candidates"

    @property
    def logs(self) -> Mapping[str, type[TrialLog]]:
        """The logs of kinds of jobs that have one of their own."""
        from kdnas.search.trial_log import LOGS

        return LOGS

    @property
    def listed(self) -> Sequence[Architecture]:
        """The architectures that a user has listed, if the search does not choose them in its space."""
        return ()

    def _search(self, arguments: list[str]) -> None:
        config, search = self.config, self.config.search
        with activity("starting"):
            import optuna

            from kdnas.search.ranking import Ranking
            from kdnas.search.schedule import Schedule
            from kdnas.search.search import SearchSettings

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        refuse_sweeps(arguments)
        with mounted("search"):
            settings = SearchSettings(**{field.name: search[field.name] for field in fields(SearchSettings)})
        schedule, ranking = instantiate(search.schedule), instantiate(search.ranking)
        require(isinstance(schedule, Schedule), "search.schedule", schedule, "a Schedule, by its _target_")
        require(isinstance(ranking, Ranking), "search.ranking", ranking, "a Ranking, by its _target_")
        instantiate(config.reward)
        for kind in schedule.expected(settings):
            if kind not in (search.stages or ()):
                raise ConfigError(f"search.stages: has no `{kind}`; must have each kind of job of search.schedule")
        require_switch("search.fresh", search.fresh)
        instantiate(config.controller, _partial_=False, seed=config.seed)
        self.folder = check_folder("search.dir", search.dir)
        self.dispatcher = Dispatcher(self.launcher, arguments, self.folder, settings.retries)
        with searching_in(self.folder):
            self.dispatcher.prepare(self.listed)
            self._run(settings, schedule, ranking)

    def _run(self, settings: SearchSettings, schedule: Schedule, ranking: Ranking) -> None:
        from kdnas.app.studies import open_studies
        from kdnas.search.loop import Loop
        from kdnas.search.proposing import Proposer
        from kdnas.search.search import Search
        from kdnas.search.trial_log import TrialLog

        space, controller = instantiate(self.config.space), instantiate(self.config.controller)
        expected = {"mini": 0, "full": 0} | schedule.expected(settings)
        proposer = Proposer(space, controller, self.config.seed)
        search = Search(settings, open_studies(self.config, self.folder, expected), proposer, ranking)
        with log_to(self.folder / "search.log"):
            log.info("the search space has %s architectures; searching in %s", space.size, self.folder)
            logs = {kind: self.logs.get(kind, TrialLog)(search, kind, total) for kind, total in expected.items()}
            for trial_log in logs.values():
                trial_log.skip_ended()

            def evaluate(jobs: Sequence[Job]) -> list[str]:
                if not jobs[0].trials:
                    return [self._run_apart(job) for job in jobs]
                with watching(logs[jobs[0].kind]):
                    return [reason(job) for job in self.dispatcher.launch(jobs)]

            with mounted("search"):
                Loop(search, schedule, evaluate).run()
            self._report(search.mini, search.full, ranking)

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
