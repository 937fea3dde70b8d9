"""`python evaluate.py proxy`: which short training ranks architectures as full distillation does.

It is a search whose architectures are given and whose schedule is a grid of short trainings, so its jobs run, resume
and show their progress as those of any search.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from kdnas.app import suggestions
from kdnas.app.kinds import staged
from kdnas.app.sweeper import KDNASSweeper
from kdnas.base.config import flatten, instantiate, override, plain
from kdnas.base.errors import mounted, require, require_whole
from kdnas.base.screen import activity, board
from kdnas.search.job import Job

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
OWN = ("proxy", "search.dir", "search.fresh", "hydra/sweeper")
"""The settings of an evaluation that are not for the search that it recommends."""
UNUSED = ("search.episodes", "search.candidates", "search.finalists", "search.schedule", "search.ranking", "controller")
"""The settings of a search that an evaluation has no use for."""
WANTED = "proxy.architectures"
MINI = "search.stages.mini"
"""The settings of the short trainings within a search's config."""


class ProxySweeper(KDNASSweeper):
    """Runs one evaluation of proxies (`hydra/sweeper=proxy`)."""

    arguments: list[str]
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

    def _search(self, arguments: list[str]) -> None:
        self.arguments = arguments
        for word in arguments:
            if key_of(word).startswith(UNUSED):
                log.warning("%s: applies to search.py only; this evaluation ignores it", word)
        with activity("starting"):
            self.criterion, self.fidelities = criterion_of(self.config), fidelities_of(self.config)
            check_architectures(self.config)
        super()._search([*arguments, "controller=random"])  # another would learn, and nobody would ask it

    def _run(self, settings: SearchSettings, schedule: Schedule, ranking: Ranking) -> None:
        from kdnas.search.proxy_grid import ProxyGrid

        self.grid = ProxyGrid(architectures_of(self.config), self.fidelities)
        super()._run(settings, self.grid, ranking)

    def _report(self, candidates: Study, finalists: Study, ranking: Ranking) -> None:
        from kdnas.reports import proxy

        architectures, proxies = self.grid.architectures, list(self.grid.fidelities)
        studies, reward = (candidates, finalists), instantiate(self.config.reward)
        found = proxy.compare(self.config.name, studies, architectures, proxies, reward, self.criterion)
        written = proxy.write(self.folder, found)
        parts = [proxy.drawn(found, board.console), proxy.answer(found)]
        if found.passing:
            search = search_command(self.arguments, self.config, self.grid.fidelities[found.passing.proxy])
            parts.append(f"Search with it:\n  {shlex.join(search)}")
        for part in (*parts, "\n".join(["Written:", *(f"  {path}" for path in written)])):
            log.info("\n%s", part.rstrip(), extra={"plain": True})


def criterion_of(config: DictConfig) -> Criterion:
    """Makes the criterion of a config's `proxy` settings."""
    from kdnas.search.fidelity import Criterion

    with mounted("proxy"):
        return Criterion(**{one.name: config.proxy[one.name] for one in fields(Criterion) if one.name in config.proxy})


def fidelities_of(config: DictConfig) -> dict[Proxy, dict[str, Any]]:
    """Returns the proxies of a config's grid, each with the settings that it changes."""
    from kdnas.search.fidelity import Proxy

    values = {name: plain(config.proxy[name]) for name in ("epochs", "data")}
    for name, listed in values.items():
        fits = isinstance(listed, list) and 0 < len(listed) == len(set(map(str, listed)))
        require(fits, f"proxy.{name}", listed, "a list of one or more different values")
    with mounted("proxy"):
        proxies = [Proxy(epochs, data) for epochs in values["epochs"] for data in values["data"]]
    stages = instantiate(staged(config, Job("mini")).objective).stages
    timed = [stage.name for stage in stages if stage.epochs is not None]
    return {proxy: fidelity(proxy, timed) for proxy in proxies}


def fidelity(proxy: Proxy, stages: Sequence[str]) -> dict[str, Any]:
    """Returns the settings of a proxy, nested as in a config.

    Args:
        stages: the names of the objective's stages that have epochs of their own; if there are none, the Trainer's
            epochs are set.
    """
    epochs: dict[str, Any] = {"trainer": {"max_epochs": proxy.epochs, "max_steps": -1}}
    if stages:
        epochs = {"objective": {name: {"epochs": proxy.epochs} for name in stages}}
    return {**epochs, "data": {"proxy": proxy.data}}


def check_architectures(config: DictConfig) -> None:
    """Refuses `proxy.architectures` as far as that does not need the space, which may ask for the teacher's size."""
    from kdnas.search.fidelity import LEAST

    wanted = config.proxy.architectures
    if OmegaConf.is_list(wanted):
        require(len(wanted) >= LEAST, WANTED, plain(wanted), f"{LEAST} or more")
    else:
        require_whole(WANTED, wanted, LEAST)
    if OmegaConf.is_list(wanted) or config.proxy.search is not None:
        architectures_of(config)


def architectures_of(config: DictConfig) -> list[Architecture]:
    """Returns the architectures of `proxy.architectures`: listed ones, or so many of the space or of a search.

    Raises:
        ConfigError: an unknown or repeated architecture, or more than there are.
    """
    from kdnas.search.spread import spread

    wanted = config.proxy.architectures
    if OmegaConf.is_list(wanted):
        found = [listed_architecture(one) for one in wanted]
        require(len(found) == len(set(found)), WANTED, plain(wanted), "different ones")
        return found
    pool, place = candidates_for(config)
    require(wanted <= len(pool), WANTED, wanted, f"at most {len(pool)}, the architectures of {place}")
    return spread(pool, wanted, config.seed)


def candidates_for(config: DictConfig) -> tuple[list[Architecture], str]:
    """Returns the architectures to choose from, and what they are of: the space, or the search in `proxy.search`."""
    from kdnas.search.journal import JOURNAL, open_storage
    from kdnas.search.spread import members
    from kdnas.search.study import Study

    if config.proxy.search is None:
        return members(instantiate(config.space), config.seed), "the space"
    folder = Path(str(config.proxy.search))
    require((folder / JOURNAL).is_file(), "proxy.search", folder, f"a search folder; it has no {JOURNAL}")
    return [seen.architecture for seen in Study(open_storage(folder)).observations], str(folder)


def listed_architecture(one: Any) -> Architecture:
    """Returns an architecture by the name of its config, or by its five values."""
    from kdnas.app.preflight import architecture

    if isinstance(one, str):
        names = GlobalHydra.instance().config_loader().get_group_options("architecture")
        require(one in names, WANTED, one, f"a number, or names of {', '.join(names)}")
        one = compose(f"architecture/{one}").architecture
    return architecture(one)


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
