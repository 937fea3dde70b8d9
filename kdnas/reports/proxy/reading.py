"""Reads the studies of an evaluation of proxies, and compares what has finished."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from textwrap import shorten

from optuna.trial import TrialState

from kdnas.costs.cost import Cost
from kdnas.models.architecture import Architecture
from kdnas.reports.proxy.results import Comparison, Rankings
from kdnas.search.fidelity import Criterion, Proxy
from kdnas.search.observation import Observation
from kdnas.search.proxy_grid import check_number, proxy_of, trained
from kdnas.search.ranking import better_cost
from kdnas.search.reward import Reward
from kdnas.search.study import Study


def compare(
    name: str,
    studies: tuple[Study, Study],
    architectures: Sequence[Architecture],
    proxies: Sequence[Proxy],
    reward: Reward,
    criterion: Criterion,
) -> Comparison:
    """Compares proxies from the studies of their trainings and of the full distillations, which may hold others too.

    Rewards are computed anew, with one cost for all trainings of an architecture: on a busy host, each has measured a
    latency of its own.

    Raises:
        ConfigError: too few of the architectures have finished every training.
    """
    mini, full = studies
    found = {proxy: trained(mini, proxy) for proxy in proxies}
    ended = trained(full)
    left = [one for one in architectures if one in ended and all(one in seen for seen in found.values())]
    failed = failures(mini, full, [one for one in architectures if one not in left])
    check_number(len(left), len(architectures), "; ".join(failed))
    costs = {one: common(seen[one].cost for seen in (ended, *found.values())) for one in left}
    teacher = common([full.teacher, mini.teacher])

    def rankings(proxy: Proxy | None, seen: Mapping[Architecture, Observation]) -> Rankings:
        values = {one: reward(seen[one].metrics, costs[one], teacher) for one in left}
        return Rankings(proxy, [replace(seen[one], cost=costs[one], reward=values[one]) for one in left])

    compared = [rankings(proxy, seen) for proxy, seen in found.items()]
    return Comparison(name, compared, rankings(None, ended), criterion, failed)


def common(costs: Iterable[Cost | None]) -> Cost:
    """Returns the most reliable cost of those that were measured of one model."""
    cost = reduce(better_cost, costs)
    assert cost is not None  # every training that has finished has measured it
    return cost


def failures(mini: Study, full: Study, architectures: Sequence[Architecture]) -> list[str]:
    """Returns a line for each of the architectures: which of its trainings failed first, and why."""
    trials = [*mini.counted(TrialState.FAIL), *full.counted(TrialState.FAIL)]
    lines = []
    for one in architectures:
        failed = [trial for trial in trials if Architecture.of(trial.params) == one]
        for trial in failed[:1]:
            where, reason = proxy_of(trial) or "in full", trial.user_attrs.get("reason", "unknown")
            lines.append(f"{one} failed ({where}): {shorten(reason, 160)}")
    return lines
