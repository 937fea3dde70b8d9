"""The points of a search space as tuples of indices, and what the trials of an Optuna study teach about them."""

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from kdnas.models.space import ENUMERABLE

State = tuple[int, ...]  # a point of the search space: the index of its value in each dimension
POOL = 10_000  # the number of random points that stand for a space with too many to list
LARGEST = 1_000
"""A dimension with more values than this is treated as continuous: they are too many to learn one by one."""


class Grid:
    """The points of a space's finite dimensions; continuous ones, and those with a single value, are left out."""

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self.distributions = {name: d for name, d in space.items() if 1 < _size(d) <= LARGEST}
        self.sizes = [int(_size(d)) for d in self.distributions.values()]
        self._indices: dict[str, dict[Any, int]] = {name: {} for name in self.distributions}

    def points(self, seed: str) -> list[State]:
        """Returns every state, in order; where they are too many, a random pool of them."""
        if math.prod(self.sizes) <= ENUMERABLE:
            return list(itertools.product(*map(range, self.sizes)))
        rng = Random(seed)
        return list(dict.fromkeys(tuple(rng.randrange(size) for size in self.sizes) for _ in range(POOL)))

    def params(self, state: State) -> dict[str, Any]:
        return {name: _value(d, index) for (name, d), index in zip(self.distributions.items(), state, strict=True)}

    def state(self, trial: FrozenTrial) -> State | None:
        """Returns the state of a trial, also of one that waits to run; None if it is not a point of this grid."""
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        try:
            return tuple([self._index(name, params[name]) for name in self.distributions])
        except (KeyError, ValueError):
            return None

    def _index(self, name: str, value: Any) -> int:
        known = self._indices[name]
        if value not in known:
            known[value] = _index(self.distributions[name], value)
        return known[value]


def _size(distribution: BaseDistribution) -> float:
    """Returns the number of values of a distribution; infinity for floats without steps."""
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    if isinstance(distribution, IntDistribution | FloatDistribution) and distribution.step is not None:
        return round((distribution.high - distribution.low) / distribution.step) + 1
    return math.inf


def _value(distribution: BaseDistribution, index: int) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[index]
    assert isinstance(distribution, IntDistribution | FloatDistribution) and distribution.step is not None
    return min(distribution.low + index * distribution.step, distribution.high)


def _index(distribution: BaseDistribution, value: Any) -> int:
    """Returns the index of a value; raises a ValueError if the distribution does not have the value."""
    internal = distribution.to_internal_repr(value)
    if not distribution._contains(internal):
        raise ValueError(f"{value!r} is not in {distribution}")
    if isinstance(distribution, CategoricalDistribution):
        return int(internal)
    assert isinstance(distribution, IntDistribution | FloatDistribution) and distribution.step is not None
    return round((internal - distribution.low) / distribution.step)


class History:
    """The trials of a study as points of a grid. The first trials that have all ended are read once: they stay so."""

    def __init__(self, study: Study, grid: Grid, candidates: int) -> None:
        self.study, self.grid, self.candidates, self.sign = study, grid, candidates, sign(study)
        self.head = 0  # the number of first trials that have all ended
        self.seen: set[State | None] = set()  # the states of the trials that have ended
        self.open: dict[int, State | None] = {}  # the states of the trials that have not ended, by number
        self.members: dict[int, set[int]] = defaultdict(set)  # the numbers of each episode's trials
        # For each episode, by the trial's number, the states and rewards to learn from.
        self.pairs: dict[int, dict[int, tuple[State, float]]] = defaultdict(dict)

    def read(self, trials: Sequence[FrozenTrial]) -> None:
        """Reads what is new in the study's trials."""
        head, self.open = self.head, {}
        for trial in trials[self.head :]:
            episode, state = episode_of(trial, self.candidates), self.grid.state(trial)
            if trial.user_attrs.get("rejected"):
                self.members[episode].discard(trial.number)
            else:
                self.members[episode].add(trial.number)
            if not trial.state.is_finished():
                self.open[trial.number] = state
                continue
            head += not self.open
            self.seen.add(state)
            if trial.state == TrialState.COMPLETE and state and math.isfinite(trial.value):  # type: ignore[arg-type]
                assert trial.value is not None
                self.pairs[episode][trial.number] = state, self.sign * trial.value
        self.head = head

    def episodes(self, before: float) -> list[list[tuple[State, float]]]:
        """Returns the (state, reward) pairs of each episode before the episode `before`, in the order of the trials."""
        known = sorted(number for number in self.pairs if number < before)
        return [[pair for _, pair in sorted(self.pairs[number].items())] for number in known]


class CommonSpace:
    """The dimensions that all finished trials have: Optuna's `intersection_search_space`, but reading on."""

    def __init__(self) -> None:
        self._study: Study | None = None
        self._head = 0
        self._space: dict[str, BaseDistribution] | None = None

    def grid(self, study: Study, trials: Sequence[FrozenTrial]) -> Grid:
        if self._study is not study:
            self._study, self._head, self._space = study, 0, None
        for trial in trials[self._head :]:
            if trial.state == TrialState.COMPLETE:
                new = trial.distributions
                known = new if self._space is None else self._space
                self._space = {name: d for name, d in known.items() if _same(d, new.get(name))}
        ended = itertools.takewhile(lambda trial: trial.state.is_finished(), trials[self._head :])
        self._head += sum(1 for _ in ended)
        return Grid(dict(sorted((self._space or {}).items())))


def episode_of(trial: FrozenTrial, candidates: int) -> int:
    """Returns the episode of a trial: its attribute `episode`, else its number over the candidates of an episode."""
    return trial.user_attrs.get("episode", trial.number // candidates)


def has_place(trial: FrozenTrial, episode: int, candidates: int) -> bool:
    """Returns whether a trial is one of an episode's candidates, and not a rejected proposal."""
    return episode_of(trial, candidates) == episode and not trial.user_attrs.get("rejected")


def sign(study: Study) -> int:
    """Returns what turns objective values into rewards, and back: 1, or -1 if the study minimises."""
    return -1 if study.direction == StudyDirection.MINIMIZE else 1


def _same(one: BaseDistribution, other: BaseDistribution | None) -> bool:
    """Returns whether two are equal. The attributes are compared first: Optuna goes through long lists one by one."""
    return one is other or (type(one) is type(other) and vars(one) == vars(other)) or one == other
