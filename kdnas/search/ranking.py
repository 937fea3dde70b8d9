"""The ranking: which candidate is the best, by the rewards of mini-KD and of the full distillations."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from kdnas.base.errors import ConfigError, require
from kdnas.base.metrics import quality
from kdnas.costs.cost import Cost, Latency
from kdnas.models.architecture import Architecture
from kdnas.search.journal import JOURNAL, open_storage
from kdnas.search.observation import Observation
from kdnas.search.study import Study


@dataclass(frozen=True)
class Candidate:
    """One finished candidate: its observations by mini-KD and, if there was one, by the full distillation."""

    mini: Observation
    full: Observation | None = None
    export: str | None = None  # the folder of the student distilled in full

    @property
    def architecture(self) -> Architecture:
        return self.mini.architecture

    @property
    def decisive(self) -> Observation:
        """The observation that decides the rank."""
        return self.full or self.mini

    @property
    def cost(self) -> Cost | None:
        """The candidate's cost, with the more reliable of its measurements."""
        return better_cost(self.full.cost if self.full else None, self.mini.cost)


@dataclass(frozen=True)
class Ranked(Candidate):
    """A candidate with its final rank, from 1, and its rank by the results of mini-KD alone."""

    rank: int = 0
    mini_rank: int = 0


@runtime_checkable
class Ranking(Protocol):
    """Orders candidates. Before the full distillations this chooses the finalists, after them the best student."""

    def order(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Returns the candidates, the best first."""


@dataclass(frozen=True)
class ByReward:
    """Orders finalists by their full rewards, none before one that dominates it; then the others by mini-KD's."""

    def order(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        by_mini = sorted(candidates, key=lambda one: (-one.mini.reward, one.mini.trial))
        finalists = sorted((one for one in by_mini if one.full), key=lambda one: -one.decisive.reward)
        return undominated_first(finalists) + [one for one in by_mini if not one.full]


@dataclass(frozen=True)
class Decided:
    """The order of a finished search (None before), as trial numbers; other candidates follow by their rewards."""

    trials: Sequence[int] | None

    def order(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Returns the candidates, the best first."""
        places = {trial: place for place, trial in enumerate(self.trials or ())}
        return sorted(ByReward().order(candidates), key=lambda one: places.get(one.mini.trial, len(places)))


def undominated_first(order: Sequence[Candidate]) -> list[Candidate]:
    """Reorders candidates as little as needed so that none comes before one that dominates it."""
    left, ordered = list(order), []
    while left:
        free = (one for one in left if not any(dominates(other, one) for other in left))
        first = next(free, left[0])  # domination may be cyclic if models were measured on different devices
        left.remove(first)
        ordered.append(first)
    return ordered


def dominates(one: Candidate, other: Candidate) -> bool:
    """Returns whether `one` is at least as good and as fast on every device as `other`, and better in one respect."""
    if one.cost is None or other.cost is None:
        return False
    pairs = [
        (one.cost.latency[target].median, other.cost.latency[target].median)
        for target in one.cost.latency.keys() & other.cost.latency.keys()
    ]
    pairs.append((-quality(one.decisive.metrics), -quality(other.decisive.metrics)))
    return all(first <= second for first, second in pairs) and any(first < second for first, second in pairs)


def candidates(mini: Study, full: Study | None = None) -> list[Candidate]:
    """Returns the finished candidates of a search, by trial, with their latest full distillation if there is one."""
    found = {seen.trial: Candidate(seen) for seen in mini.observations}
    for seen in full.observations if full else ():
        number = seen.candidate
        assert number is not None
        found[number] = Candidate(found[number].mini, seen, seen.export)
    return list(found.values())


def final_ranking(ranking: Ranking, mini: Study, full: Study | None = None) -> list[Ranked]:
    """Ranks the finished candidates of a search, the best first, from the studies of mini-KD and full distillations."""
    before = ranking.order(candidates(mini))
    places = {one.mini.trial: place for place, one in enumerate(before, start=1)}
    return [
        Ranked(one.mini, one.full, one.export, rank, places[one.mini.trial])
        for rank, one in enumerate(ranking.order(candidates(mini, full)), start=1)
    ]


def ranked_architecture(search: str, rank: int = 1, trial: int | None = None) -> Architecture:
    """Returns the architecture with a final rank, 1 for the best, or of a trial, in the folder of a finished search.

    A ConfigError refuses a folder without a finished search, or without such a candidate.
    """
    folder = Path(search)
    if not (folder / JOURNAL).is_file():
        raise ConfigError.of("search", f"={search}: holds no search (no {JOURNAL})")
    study = Study(open_storage(folder))
    if study.order is None:
        raise ConfigError.of("search", f"={search}: this search has not finished; run the same command again to go on")
    if trial is None:
        fits = isinstance(rank, int) and 1 <= rank <= len(study.order)
        require(fits, "rank", rank, f"from 1 to {len(study.order)}, the candidates of {search}")
        trial = study.order[rank - 1]
    require(trial in study.order, "trial", trial, f"a finished candidate of {search}")
    return study.architecture(trial)


def better_cost(first: Cost | None, second: Cost | None) -> Cost | None:
    """Merges two costs of one model: the first, with latencies of the second where only these are reliable."""
    if first is None or second is None:
        return first or second
    latency = {device: _reliable(seen, second.latency.get(device)) for device, seen in first.latency.items()}
    return Cost(first.parameters, first.flops, dict(second.latency) | latency)


def _reliable(first: Latency, second: Latency | None) -> Latency:
    return second if second and first.busy and not second.busy else first
