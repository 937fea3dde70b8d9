"""Which proposals of Optuna's samplers are random ones: those with which they start, before they know anything."""

from __future__ import annotations

from typing import Any

from optuna.samplers import BaseSampler, RandomSampler

WITHIN = ("_random_sampler", "_independent_sampler")
"""Where Optuna's samplers keep the one that draws for them."""


class Draws:
    """Counts the values that a sampler has drawn at random, whatever its own rule for that is.

    Args:
        sampler: is watched from now on.
    """

    def __init__(self, sampler: BaseSampler) -> None:
        self.always = isinstance(sampler, RandomSampler)
        self.count = 0
        for name in WITHIN:
            if hasattr(sampler, name):
                setattr(sampler, name, _Watched(getattr(sampler, name), self))

    def origin(self, since: int, values: int) -> str:
        """`random` if all of so many values were drawn at random since a count, else `controller`.

        A genetic algorithm also draws the values of a child that it mutates; the others are the parents'.
        """
        return "random" if self.always or self.count - since >= values else "controller"


class _Watched:
    """A sampler as it is, but for the count."""

    def __init__(self, sampler: BaseSampler, draws: Draws) -> None:
        self._sampler, self._draws = sampler, draws

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def sample_independent(self, *arguments: Any) -> Any:
        self._draws.count += 1
        return self._sampler.sample_independent(*arguments)
