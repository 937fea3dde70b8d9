"""Detects which proposals of Optuna's samplers are random, as those of their start-up phase."""

from __future__ import annotations

from typing import Any

from optuna.samplers import BaseSampler, RandomSampler

WITHIN = ("_random_sampler", "_independent_sampler")
"""The attributes in which Optuna's samplers keep the sampler of their random draws."""


class Draws:
    """Counts the values that a sampler draws at random, whatever its start-up rule is.

    Args:
        sampler: the sampler; its random draws are wrapped from now on.
    """

    def __init__(self, sampler: BaseSampler) -> None:
        self.always = isinstance(sampler, RandomSampler)
        self.count = 0
        for name in WITHIN:
            if hasattr(sampler, name):
                setattr(sampler, name, _Watched(getattr(sampler, name), self))

    def origin(self, since: int, values: int) -> str:
        """Returns `random` if all `values` values were drawn at random since the count `since`, else `controller`.

        A genetic algorithm draws only the mutated values of a child at random; the others are its parents'.
        """
        return "random" if self.always or self.count - since >= values else "controller"


class _Watched:
    """Wraps a sampler to count its independent draws."""

    def __init__(self, sampler: BaseSampler, draws: Draws) -> None:
        self._sampler, self._draws = sampler, draws

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def sample_independent(self, *arguments: Any) -> Any:
        self._draws.count += 1
        return self._sampler.sample_independent(*arguments)
