"""A schedule that measures proxies: it trains given architectures by every proxy of a grid, and in full."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from kdnas.base.errors import ConfigError
from kdnas.models.architecture import Architecture
from kdnas.search.fidelity import LEAST, Proxy
from kdnas.search.gangs import balanced
from kdnas.search.job import Job
from kdnas.search.observation import Observation
from kdnas.search.schedule import Schedule
from kdnas.search.search import Search, SearchSettings, reasons
from kdnas.search.study import Study

PROXY = "proxy"
"""The attribute of a trial that says by which proxy it is trained."""


class ProxyGrid(Schedule):
    """Trains every architecture by the smallest proxy, those that have not failed by the others, and then in full.

    A folder goes on with a larger grid or with further architectures: what it has is not trained again.

    Args:
        architectures: the architectures to compare.
        fidelities: the settings of each proxy, nested as in a config.
    """

    def __init__(self, architectures: Sequence[Architecture], fidelities: Mapping[Proxy, Mapping[str, Any]]) -> None:
        self.architectures = list(architectures)
        self.fidelities = {proxy: fidelities[proxy] for proxy in sorted(fidelities, key=lambda one: (one.passes, one))}

    def batches(self, search: Search) -> Iterator[Sequence[Job]]:
        """See `Schedule`; raises a ConfigError as soon as too few architectures are left."""
        smallest, *others = self.fidelities
        for proxies in ([smallest], others):  # the smallest alone: one that fails there is not trained by the others
            left = self._not_failed(search.mini)
            for proxy in proxies:
                attributes = {PROXY: proxy.to_dict(), "fidelity": self.fidelities[proxy]}
                add(search.mini, dict.fromkeys(left, attributes), search.settings.gang, proxy)
            yield search.mini.jobs()
            left = self._not_failed(search.mini)
            check_number(len(left), len(self.architectures), reasons(search.mini))
        seen = trained(search.mini, smallest)
        add(search.full, {one: {"candidate": seen[one].trial} for one in left}, search.settings.gang)
        yield search.full.jobs()

    def _not_failed(self, mini: Study) -> list[Architecture]:
        """Returns the architectures that no proxy of the grid has failed on yet."""
        failed = [trial for trial in mini.counted(TrialState.FAIL) if proxy_of(trial) in self.fidelities]
        return [one for one in self.architectures if one not in {Architecture.of(trial.params) for trial in failed}]

    def expected(self, settings: SearchSettings) -> dict[str, int]:
        return {"mini": len(self.architectures) * len(self.fidelities), "full": len(self.architectures)}


def add(study: Study, wanted: Mapping[Architecture, Mapping[str, Any]], gang: int, proxy: Proxy | None = None) -> None:
    """Adds a running trial for each architecture, with its attributes, unless there is one, finished or failed."""
    there = {Architecture.of(trial.params) for trial in study.counted() if proxy_of(trial) == proxy}
    missing = [one for one in wanted if one not in there]
    episode = 1 + max((trial.user_attrs["episode"] for trial in study.trials()), default=-1)  # gangs are within one
    for one in balanced(missing, gang):
        study.add(one, {"episode": episode, "origin": "random", "gang": gang, **wanted[one]})


def check_number(left: int, architectures: int, why: str) -> None:
    """Raises an error if so few architectures have finished every training that a ranking of them says nothing."""
    if left < LEAST:
        finished = f"{left} of {architectures} finished every training"
        raise ConfigError(f"proxy.architectures: {finished}; must be at least {LEAST}; {why}")


def trained(study: Study, proxy: Proxy | None = None) -> dict[Architecture, Observation]:
    """Returns what has finished by a proxy, or in full, by architecture."""
    numbers = {trial.number for trial in study.counted() if proxy_of(trial) == proxy}
    return {seen.architecture: seen for seen in study.observations if seen.trial in numbers}


def proxy_of(trial: FrozenTrial) -> Proxy | None:
    """Returns the proxy that a trial is trained by; None for a full distillation."""
    values = trial.user_attrs.get(PROXY)
    return Proxy.of(values) if values else None
