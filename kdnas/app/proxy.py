"""`python evaluate.py proxy`: which short training ranks architectures as full distillation does.

It is a search whose architectures are given and whose schedule is a grid of short trainings, so its jobs run, resume
and show their progress as those of any search.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from kdnas.app import suggestions
from kdnas.app.proxy_settings import (
    architectures_of,
    check_architectures,
    criterion_of,
    fidelities_of,
    without_own_proxy,
)
from kdnas.app.sweeper import KDNASSweeper
from kdnas.base.config import flatten, instantiate, override, plain
from kdnas.base.errors import ConfigError
from kdnas.base.screen import activity, board

if TYPE_CHECKING:  # Hydra imports this module at every start: nothing heavy before an evaluation begins
    from kdnas.models.architecture import Architecture
    from kdnas.search.fidelity import Criterion, Proxy
    from kdnas.search.proxy_grid import ProxyGrid
    from kdnas.search.ranking import Ranking
    from kdnas.search.schedule import Schedule
    from kdnas.search.search import SearchSettings
    from kdnas.search.study import Study
    from kdnas.search.trial_log import TrialLog

log = logging.getLogger(__name__)
OWN = ("proxy", "search.dir", "search.fresh", "data.proxy", "hydra/sweeper", "hydra.searchpath")
"""The settings of an evaluation that are not for the search that it recommends."""
UNUSED = (
    *("search.episodes", "search.candidates", "search.finalists", "search.schedule", "search.ranking"),
    *("controller", "data.proxy"),
)
"""The settings of a search that an evaluation has no use for."""
MINI = "search.stages.mini"
"""The settings of the short trainings within a search's config."""


class ProxySweeper(KDNASSweeper):
    """Runs one evaluation of proxies (`hydra/sweeper=proxy`)."""

    arguments: list[str]
    asked: DictConfig
    criterion: Criterion
    fidelities: Mapping[Proxy, Mapping[str, Any]]
    grid: ProxyGrid

    @property
    def title(self) -> str:
        wanted = self.config.proxy
        return f"proxies of {plain(wanted.epochs)} epochs on {plain(wanted.data)} of the rows"

    @property
    def logs(self) -> Mapping[str, type[TrialLog]]:
        from kdnas.search.proxy_log import ProxyLog

        return {"mini": ProxyLog, "full": ProxyLog}

    @property
    def listed(self) -> Sequence[Architecture]:
        return architectures_of(self.asked) if OmegaConf.is_list(self.asked.proxy.architectures) else ()

    def _search(self, arguments: list[str]) -> None:
        self.arguments, self.asked = arguments, self.config
        for word in arguments:
            if word.startswith("proxy.") and OverridesParser.create().parse_override(word).is_sweep_override():
                key, _, values = word.partition("=")
                raise ConfigError(f"{word}: one evaluation compares all of a list; must be {key}=[{values}]")
            if key_of(word).startswith(UNUSED):
                log.warning("%s: applies to search.py only; this evaluation ignores it", word)
        with activity("starting"):
            self.criterion, self.fidelities = criterion_of(self.config), fidelities_of(self.config)
            check_architectures(self.config)
        super()._search([*arguments, "controller=random"])  # another would learn, and nobody would ask it

    def _run(self, settings: SearchSettings, schedule: Schedule, ranking: Ranking) -> None:
        from kdnas.search.proxy_grid import ProxyGrid

        self.grid = ProxyGrid(architectures_of(self.asked), self.fidelities)
        self.config = without_own_proxy(self.asked)  # or a folder could not be gone on with after they have changed
        super()._run(settings, self.grid, ranking)

    def _report(self, candidates: Study, finalists: Study, ranking: Ranking) -> None:
        from kdnas.reports import proxy

        architectures, proxies = self.grid.architectures, list(self.grid.fidelities)
        studies, reward = (candidates, finalists), instantiate(self.config.reward)
        found = proxy.compare(self.config.name, studies, architectures, proxies, reward, self.criterion)
        written = proxy.write(self.folder, found)
        parts = [proxy.drawn(found, board.console), proxy.answer(found)]
        if found.passing:
            search = search_command(self.arguments, self.asked, self.grid.fidelities[found.passing.proxy])
            parts.append(f"Search with it:\n  {shlex.join(search)}")
        for part in (*parts, "\n".join(["Written:", *(f"  {path}" for path in written)])):
            log.info("\n%s", part.rstrip(), extra={"plain": True})


def search_command(overrides: Sequence[str], config: DictConfig, settings: Mapping[str, Any]) -> list[str]:
    """Returns the command of a search that scores its candidates by a proxy, from the evaluation's overrides."""
    kept = []
    for word in overrides:
        if not any(f"{key_of(word)}.".startswith(f"{own}.") for own in OWN):
            kept.append(word)
    for key, value in flatten(dict(settings)).items():
        before = OmegaConf.select(config.search.stages.mini, key)
        kept += [("++" if before is None else "") + override(f"{MINI}.{key}", value)] if before != value else []
    return [*suggestions.command(config.hydra, "search"), *kept]


def key_of(word: str) -> str:
    return str(OverridesParser.create().parse_override(word).key_or_group)
