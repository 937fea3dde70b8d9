"""The final ranking: finalists by the full distillation, then the other candidates by mini-KD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import TrialState

from kdnas.base.errors import ConfigError
from kdnas.costs.cost import Cost, Latency
from kdnas.models.architecture import Architecture
from kdnas.search.journal import JOURNAL, open_storage
from kdnas.search.study import Observation, Study, deciding


@dataclass(frozen=True)
class Ranked:
    """One finished candidate in the search's final order.

    Attributes:
        rank: the final rank, from 1.
        mini_rank: the rank by the rewards of mini-KD alone.
        mini: the observation of mini-KD.
        full: the observation of the full distillation; None if there was none.
        export: the folder of the student distilled in full.
    """

    rank: int
    mini_rank: int
    mini: Observation
    full: Observation | None = None
    export: str | None = None

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


def final_ranking(candidates: Study, finalists: Study | None = None) -> list[Ranked]:
    """Ranks the finished candidates, the best first.

    Finalists that were distilled in full come first, by their full rewards, except that none comes before a finalist
    that dominates it. The others follow by their rewards of mini-KD.
    """
    ranked = candidates.ranked()
    places = {seen.trial: (place, seen) for place, seen in enumerate(ranked, start=1)}
    distilled: dict[int, Ranked] = {}
    for trial in finalists.current(TrialState.COMPLETE) if finalists else ():
        number = trial.user_attrs["candidate"]
        place, seen = places[number]
        distilled[number] = Ranked(0, place, seen, Observation.of(trial), trial.user_attrs.get("export"))
    order = undominated_first(sorted(distilled.values(), key=lambda one: (-one.decisive.reward, one.mini_rank)))
    order += [Ranked(0, place, seen) for place, seen in places.values() if seen.trial not in distilled]
    return [Ranked(rank, one.mini_rank, one.mini, one.full, one.export) for rank, one in enumerate(order, start=1)]


def undominated_first(order: Sequence[Ranked]) -> list[Ranked]:
    """Reorders candidates as little as needed so that none comes before one that dominates it."""
    left, sorted_ = list(order), []
    while left:
        free = (one for one in left if not any(dominates(other, one) for other in left))
        first = next(free, left[0])  # domination may be cyclic if models were measured on different devices
        left.remove(first)
        sorted_.append(first)
    return sorted_


def dominates(one: Ranked, other: Ranked) -> bool:
    """Returns whether `one` is at least as good and as fast on every device as `other`, and better in one respect."""
    if one.cost is None or other.cost is None:
        return False
    theirs = other.cost.latency
    pairs = [(seen.median, theirs[device].median) for device, seen in one.cost.latency.items() if device in theirs]
    pairs.append((-quality(one.decisive.metrics), -quality(other.decisive.metrics)))
    return all(mine <= its for mine, its in pairs) and any(mine < its for mine, its in pairs)


def quality(metrics: Mapping[str, float]) -> float:
    """Returns the deciding metric, negated if it is the loss: larger is better."""
    name = deciding(metrics)
    return -metrics["loss"] if name == "loss" else metrics[name]


def better_cost(first: Cost | None, second: Cost | None) -> Cost | None:
    """Merges two costs of one model: the first, with latencies of the second where only these are reliable."""
    if first is None or second is None:
        return first or second
    latency = {device: better(seen, second.latency.get(device)) for device, seen in first.latency.items()}
    return Cost(first.parameters, first.flops, dict(second.latency) | latency)


def better(first: Latency, second: Latency | None) -> Latency:
    return second if second and first.busy and not second.busy else first


def ranked_architecture(search: str, rank: int = 1, trial: int | None = None) -> Architecture:
    """Returns the architecture with a rank in a finished search (`architecture=from_search`).

    Args:
        search: the search's folder.
        rank: the final rank, 1 for the best candidate.
        trial: the number of a finished candidate, in place of a rank.

    Raises:
        ConfigError: the folder holds no search, an unfinished one, or no such candidate.
    """
    folder = Path(search)
    if not (folder / JOURNAL).is_file():
        raise ConfigError(f"search.dir={search}: holds no search (no {JOURNAL})")
    storage = open_storage(folder)
    study = Study(storage)
    if not study.optuna.user_attrs.get("finished"):
        raise ConfigError(f"search.dir={search}: this search has not finished; run the same command again to go on")
    ranking = final_ranking(study, Study(storage, "full"))
    if trial is not None:
        by_trial = {one.mini.trial: one.architecture for one in ranking}
        if trial not in by_trial:
            raise ConfigError(f"architecture.trial={trial}: must be a finished candidate of {search}")
        return by_trial[trial]
    if not isinstance(rank, int) or not 1 <= rank <= len(ranking):
        raise ConfigError(f"architecture.rank={rank}: must be from 1 to {len(ranking)}, the candidates of {search}")
    return ranking[rank - 1].architecture
