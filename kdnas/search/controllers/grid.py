"""The grid: the points of a search space as tuples of indices, which a predictor can learn from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from random import Random
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from kdnas.models.space import ENUMERABLE

if TYPE_CHECKING:
    from kdnas.search.controllers.predictor import State

POOL = 10_000
"""The number of random points that stand for a space with too many to list."""
LARGEST = 1_000
"""A dimension with more values than this is treated as continuous: they are too many to learn one by one."""


class Grid:
    """The points of a space's finite dimensions. A *state* is the index of a point's value in each of them.

    Args:
        space: Optuna's distributions by name; continuous ones, and those with a single value, are left out.
    """

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
        """Returns the values of a state, by dimension."""
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
    """Returns the index of a value.

    Raises:
        ValueError: the distribution does not have the value.
    """
    internal = distribution.to_internal_repr(value)
    if not distribution._contains(internal):
        raise ValueError(f"{value!r} is not in {distribution}")
    if isinstance(distribution, CategoricalDistribution):
        return int(internal)
    assert isinstance(distribution, IntDistribution | FloatDistribution) and distribution.step is not None
    return round((internal - distribution.low) / distribution.step)
