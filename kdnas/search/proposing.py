"""Proposing: the controller chooses the architectures of an episode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial

from kdnas.base.errors import ConfigError
from kdnas.models.architecture import Architecture
from kdnas.models.space import SearchSpace
from kdnas.search.gangs import balanced
from kdnas.search.study import Study

ControllerFactory = Callable[..., BaseSampler]  # makes a sampler: `controller(seed=0)`
REPEATS = 200
"""The most proposals in a row that are known or outside the space; after them, an architecture is drawn at random."""
WITHIN = ("_random_sampler", "_independent_sampler")
"""The attributes in which Optuna's samplers keep the sampler of their random draws."""


class Proposer:
    """Adds the candidates that a controller chooses from a space to a study."""

    def __init__(self, space: SearchSpace, controller: ControllerFactory, seed: int) -> None:
        self.space, self.controller, self.seed = space, controller, seed
        self.distributions: dict[str, BaseDistribution] = {}  # the space for Optuna, numbers in rising order
        for name, values in space.reachable.items():
            rising = all(isinstance(value, int) for value in values)
            self.distributions[name] = CategoricalDistribution(sorted(values) if rising else values)

    def propose(self, study: Study, count: int, episode: int, gang: int = 1) -> None:
        """Adds the running trials of an episode: `count` architectures that no earlier episode has had.

        The choice is a function of the earlier episodes' trials and the seed alone: the controller chooses in a
        rehearsal, an in-memory study with copies of these trials. So rejected proposals leave no trace, and an episode
        that was interrupted while it was written is completed with the same architectures. If the space is exhausted,
        fewer than `count` are added. Each `gang` consecutive trials share a job.
        """
        trials = study.trials()
        there = {study.architecture(trial.number) for trial in trials if trial.user_attrs["episode"] == episode}
        if len(there) >= count:
            return
        earlier = [trial for trial in trials if trial.user_attrs["episode"] < episode]
        # Not seed + episode: seed 1 must not search as seed 0 does one episode later.
        own = Random(f"{self.seed}/{episode}").getrandbits(32)
        rehearsal = _Rehearsal(self, earlier, episode, own)
        seen = set(study.architectures()) - there
        chosen: dict[Architecture, FrozenTrial] = {}
        while len(chosen) < count:
            try:
                trial = rehearsal.choose(seen)
            except LookupError:
                break
            chosen[Architecture.of(trial.params)] = trial
            seen |= chosen.keys()
        for one in balanced(list(chosen), gang):
            if one not in there and len(there) < count:
                there.add(one)
                attributes = {**chosen[one].user_attrs, "gang": gang}
                study.add(one, attributes, self.distributions, chosen[one].system_attrs)


class _Rehearsal:
    """An in-memory study in which the controller chooses an episode; it learns from the `earlier` trials."""

    def __init__(self, proposer: Proposer, earlier: list[FrozenTrial], episode: int, seed: int) -> None:
        self.space, self.distributions, self.episode = proposer.space, proposer.distributions, episode
        sampler = proposer.controller(seed=seed)
        self.draws, self.rng = Draws(sampler), Random(seed)
        self.study = optuna.create_study(sampler=sampler, direction="maximize")
        for trial in earlier:
            self.study._storage.create_new_trial(self.study._study_id, _Shared(trial))

    def choose(self, seen: set[Architecture]) -> FrozenTrial:
        """Returns the next architecture not in `seen`, as a trial; a random one after `REPEATS` rejected proposals.

        A LookupError says that the space holds no further architecture.
        """
        for _ in range(REPEATS):
            self.study.enqueue_trial({}, user_attrs={"episode": self.episode})
            before = self.draws.count
            trial = self.study.ask(self.distributions)
            proposed = _architecture(trial.params)
            if proposed in self.space and proposed not in seen:
                if "origin" not in self._trial(trial.number).user_attrs:  # the controller does not say
                    trial.set_user_attr("origin", self.draws.origin(before, len(self.distributions)))
                return self._trial(trial.number)
            # Left running: samplers ignore failed trials, and would propose the same point again.
            trial.set_user_attr("rejected", True)
        drawn = self.space.sample(self.rng, besides=seen)
        self.study.enqueue_trial(drawn.to_dict(), user_attrs={"episode": self.episode, "origin": "random"})
        return self._trial(self.study.ask(self.distributions).number)

    def _trial(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]


class _Shared(FrozenTrial):
    """A trial that storages do not copy: Optuna's deep copies are slow, and a rehearsal changes no trial."""

    def __init__(self, trial: FrozenTrial) -> None:
        vars(self).update(vars(trial))

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self


def _architecture(params: Mapping[str, Any]) -> Architecture | None:
    """Makes an architecture; returns None for an invalid point of the grid, as where heads do not divide the size."""
    try:
        return Architecture.of(params)
    except ConfigError:
        return None


class Draws:
    """Counts the values that a sampler draws at random from now on, whatever its start-up rule is."""

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
