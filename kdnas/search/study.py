"""The study: all observations of a search, stored by Optuna in an append-only journal.

A search folder holds one journal with two Optuna studies, named after their stages: `mini` (the candidates, scored by
mini-KD) and `full` (the finalists, distilled in full). The user attributes of trials hold the other fields of an
`Observation`.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from kdnas.base.errors import ConfigError
from kdnas.base.identity import SOURCES
from kdnas.costs.cost import Cost
from kdnas.models.architecture import Architecture
from kdnas.models.space import SearchSpace
from kdnas.search.startup import Draws

REPEATS = 200
"""The most proposals in a row that are known or outside the space; after them, an architecture is drawn at random."""

ControllerFactory = Callable[..., BaseSampler]


@dataclass(frozen=True)
class Observation:
    """One finished trial: its architecture and its results."""

    trial: int
    episode: int
    architecture: Architecture
    origin: str
    """Who chose the architecture: `random` or `controller`."""
    prediction: float | None
    """The reward that the controller predicted, if it predicts one."""
    reward: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The held-out metrics, `loss` among them."""
    cost: Cost | None = None
    seconds: float = 0.0
    estimated: bool = False
    """Whether the reward was computed with a latency of a busy host, the teacher's or its own."""

    @classmethod
    def of(cls, trial: FrozenTrial, again: Mapping[str, Any] | None = None) -> Observation:
        """Reads a finished trial; `again` has its corrected cost and reward, if it was measured again."""
        attributes = {**trial.user_attrs, "reward": trial.value, **(again or {})}
        cost = attributes.get("cost")
        return cls(
            trial=trial.number,
            episode=attributes["episode"],
            architecture=Architecture.of(trial.params),
            origin=attributes["origin"],
            prediction=attributes.get("prediction"),
            reward=attributes["reward"],
            metrics=attributes.get("metrics", {}),
            cost=Cost.of(cost) if cost else None,
            seconds=attributes.get("seconds", 0.0),
            estimated=attributes.get("estimated", False),
        )


class Study:
    """The observations of one stage.

    Args:
        storage: an Optuna storage; `open_storage` opens a search folder's.
        stage: `mini` or `full`.
        controller: the sampler that learns from each trial as it finishes; None if there is none.
    """

    def __init__(self, storage: BaseStorage, stage: str = "mini", controller: BaseSampler | None = None) -> None:
        self.optuna = optuna.create_study(
            storage=storage,
            study_name=stage,
            sampler=controller or RandomSampler(),
            direction="maximize",
            load_if_exists=True,
        )
        if not self.optuna.metric_names:
            with warnings.catch_warnings(category=ExperimentalWarning, action="ignore"):
                self.optuna.set_metric_names(["reward"])
        self._architectures: list[Architecture] = []

    # -- reading

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.optuna.get_trials(deepcopy=False, states=states or None)

    @property
    def observations(self) -> list[Observation]:
        """The finished trials, in the order they were proposed."""
        again = self.optuna.user_attrs
        return [Observation.of(trial, again.get(_again(trial.number))) for trial in self.current(TrialState.COMPLETE)]

    def current(self, *states: TrialState) -> list[FrozenTrial]:
        """Returns the trials that were run under the study's current settings (see `renew`)."""
        return [trial for trial in self.trials(*states) if trial.user_attrs.get("generation", "") == self.generation]

    @property
    def generation(self) -> str:
        """The digest of the settings that trials are counted under (see `renew`); empty if they never change."""
        return self.optuna.user_attrs.get("generation", "")

    def ranked(self) -> list[Observation]:
        """Returns the finished trials, best reward first."""
        return sorted(self.observations, key=lambda seen: (-seen.reward, seen.trial))

    def trial(self, number: int) -> FrozenTrial:
        storage = self.optuna._storage
        return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(self.optuna._study_id, number))

    def architecture(self, number: int) -> Architecture:
        return Architecture.of(self.trial(number).params)

    def architectures(self) -> list[Architecture]:
        """Returns the architecture of every trial, by number. A trial's never changes, so each is read once."""
        self._architectures += [Architecture.of(trial.params) for trial in self.trials()[len(self._architectures) :]]
        return self._architectures

    @property
    def teacher(self) -> Cost | None:
        known = self.optuna.user_attrs.get("teacher")
        return Cost.of(known) if known else None

    @teacher.setter
    def teacher(self, cost: Cost) -> None:
        """Stores the teacher's cost, unless one is known that is as reliable."""
        known = self.teacher
        if known is None or (known.busy and not cost.busy):
            self.optuna.set_user_attr("teacher", cost.to_dict())

    def settle(self, facts: Mapping[str, Any]) -> None:
        """Stores the values that the prepare job has determined (see `kdnas.base.run_folder.write_prepared`).

        An earlier precision is kept: the rewards of one search must be comparable.
        """
        known = self.optuna.user_attrs
        for name, value in facts.items():
            if name == "teacher":
                self.teacher = Cost.of(value)
            elif name != "precision" or name not in known:
                self.optuna.set_user_attr(name, value)

    def renew(self, settings: Mapping[str, Any]) -> bool:
        """Counts only the trials of these settings, which decide results, from now on.

        Other trials stay in the study, and count again when the settings are theirs again.

        Returns:
            Whether there were earlier trials that are not counted any more.
        """
        before, counted = self.generation, self.current()
        decisive = {key: value for key, value in settings.items() if key != SOURCES}
        self.optuna.set_user_attr("settings", dict(settings))
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
        self.optuna.set_user_attr("generation", digest)
        if self.generation == before:
            return False
        for trial in self.trials(TrialState.RUNNING):
            self.fail(trial.number, "its settings have changed")
        return bool(counted)

    @property
    def precision(self) -> str:
        """The precision that every candidate of the search is trained in, as Lightning names it."""
        return self.optuna.user_attrs["precision"]

    @property
    def teacher_metrics(self) -> dict[str, float]:
        """The teacher's own held-out metrics by name; empty where the objective has no metric."""
        return self.optuna.user_attrs.get("teacher_metrics", {})

    @property
    def chance(self) -> dict[str, float]:
        """The held-out metrics of the best constant prediction by name; empty where the objective has no metric."""
        return self.optuna.user_attrs.get("chance", {})

    @property
    def held_out_rows(self) -> int | None:
        """The number of examples that the held-out metrics are computed on; None if it is not known."""
        return self.optuna.user_attrs.get("held_out_rows")

    # -- proposing

    def propose(
        self,
        count: int,
        episode: int,
        space: SearchSpace,
        controller: ControllerFactory,
        seed: int,
        gang: int = 1,
    ) -> None:
        """Adds the running trials of an episode: `count` architectures that no earlier episode has had.

        The choice is a function of the earlier episodes' trials and the seed alone: the controller chooses in a
        rehearsal, an in-memory study with copies of these trials. So rejected proposals leave no trace, and an episode
        that was interrupted while it was written is completed with the same architectures. If the space is exhausted,
        fewer than `count` are added. Every `gang` consecutive trials share a job; they are ordered so that gangs have
        about the same number of weights, and none needs much more memory or time than the others.
        """
        trials = self.trials()
        there = {self.architecture(trial.number) for trial in trials if trial.user_attrs["episode"] == episode}
        if len(there) >= count:
            return
        # Not seed + episode: seed 1 must not search as seed 0 does one episode later.
        own = Random(f"{seed}/{episode}").getrandbits(32)
        sampler = controller(seed=own)
        draws = Draws(sampler)
        rehearsal = optuna.create_study(sampler=sampler, direction="maximize")
        for trial in trials:
            if trial.user_attrs["episode"] < episode:
                rehearsal._storage.create_new_trial(rehearsal._study_id, _Shared(trial))
        seen = set(self.architectures()) - there
        rng = Random(own)
        chosen: dict[Architecture, FrozenTrial] = {}
        while len(chosen) < count:
            try:
                trial = self._rehearse(rehearsal, draws, episode, space, seen, rng)
            except LookupError:
                break
            chosen[Architecture.of(trial.params)] = trial
            seen |= chosen.keys()
        for one in balanced(list(chosen), gang):
            if one not in there and len(there) < count:
                there.add(one)
                attributes = {**chosen[one].user_attrs, "gang": gang}
                self.add(one, attributes, chosen[one].system_attrs, space)

    @staticmethod
    def _rehearse(
        rehearsal: optuna.Study,
        draws: Draws,
        episode: int,
        space: SearchSpace,
        seen: set[Architecture],
        rng: Random,
    ) -> FrozenTrial:
        """Asks the controller for the next new architecture; draws one at random after `REPEATS` rejected proposals."""
        distributions = distributions_of(space)
        for _ in range(REPEATS):
            rehearsal.enqueue_trial({}, user_attrs={"episode": episode})
            before = draws.count
            trial = rehearsal.ask(distributions)
            proposed = _architecture(trial.params)
            if proposed in space and proposed not in seen:
                if "origin" not in rehearsal.get_trials(deepcopy=False)[trial.number].user_attrs:  # unknown
                    trial.set_user_attr("origin", draws.origin(before, len(distributions)))
                return rehearsal.get_trials(deepcopy=False)[trial.number]
            # Left running: samplers ignore failed trials, and would propose the same point again.
            trial.set_user_attr("rejected", True)
        drawn = space.sample(rng, besides=seen)
        rehearsal.enqueue_trial(drawn.to_dict(), user_attrs={"episode": episode, "origin": "random"})
        return rehearsal.get_trials(deepcopy=False)[rehearsal.ask(distributions).number]

    def add(
        self,
        architecture: Architecture,
        attributes: Mapping[str, Any],
        system_attributes: Mapping[str, Any] | None = None,
        space: SearchSpace | None = None,
    ) -> None:
        """Adds a running trial in one write. Without a space, each of its distributions has a single choice."""
        params = architecture.to_dict()
        single: dict[str, BaseDistribution] = {name: CategoricalDistribution([value]) for name, value in params.items()}
        self.optuna.add_trial(
            optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params=params,
                distributions=distributions_of(space) if space else single,
                user_attrs=dict(attributes),
                system_attrs={k: v for k, v in (system_attributes or {}).items() if k != "fixed_params"},
            )
        )

    def jobs(self) -> list[list[FrozenTrial]]:
        """Returns the gangs with running trials, as they were proposed.

        A gang keeps its finished members, since its checkpoint holds them too.
        """
        trials = self.trials()
        running = {trial.user_attrs["episode"] for trial in trials if trial.state == TrialState.RUNNING}
        places: Counter[int] = Counter()
        gangs: dict[tuple[int, ...], list[FrozenTrial]] = {}
        for trial in trials:
            if trial.user_attrs["episode"] not in running:
                continue
            episode, size = trial.user_attrs["episode"], trial.user_attrs.get("gang", 1)
            key = (episode, trial.number, 1) if trial.user_attrs.get("alone") else (episode, places[episode] // size)
            places[episode] += 1
            gangs.setdefault(key, []).append(trial)
        return [gang for gang in gangs.values() if any(trial.state == TrialState.RUNNING for trial in gang)]

    def part(self, gang: Iterable[int]) -> None:
        """Splits a gang: each of its running trials gets a job of its own."""
        for number in gang:
            if not self.trial(number).state.is_finished():
                self._running(number).set_user_attr("alone", True)

    # -- reporting

    def tell(
        self, number: int, reward: float, metrics: Mapping[str, float], cost: Cost, **more: float | str | bool | None
    ) -> None:
        """Records the results of a running trial; a trial that has already finished stays as it is.

        Args:
            number: the trial's number.
            more: further attributes of the trial: the `seconds` of its training, its `export` folder.
        """
        if self.trial(number).state.is_finished():
            return
        trial = self._running(number)
        trial.set_user_attr("metrics", dict(metrics))
        for name, value in (flat(metrics, cost, self.teacher) | more).items():
            trial.set_user_attr(name, value)
        trial.set_user_attr("cost", cost.to_dict())
        self.optuna.tell(number, reward)

    def correct(self, number: int, cost: Cost, reward: float, estimated: bool) -> None:
        """Stores the corrected cost and reward of a finished trial; the controller has learned from the earlier ones.

        Args:
            estimated: whether the reward is still computed with a latency of a busy host, the teacher's.
        """
        again = {"cost": cost.to_dict(), "reward": reward, "estimated": estimated}
        self.optuna.set_user_attr(_again(number), again)

    @property
    def busy(self) -> bool:
        """Whether a latency of the teacher or of a trial was measured on a busy host."""
        seen = self.observations
        costs = [self.teacher, *(one.cost for one in seen)]
        return any(one.estimated for one in seen) or any(cost.busy for cost in costs if cost)

    def fail(self, number: int, reason: str) -> None:
        """Records that a trial failed. A finished trial stays as it is."""
        if not self.trial(number).state.is_finished():
            self._running(number).set_user_attr("reason", reason)
            self.optuna.tell(number, state=TrialState.FAIL)

    def watch(self, number: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Records a running trial's deciding metric after an epoch as its intermediate value."""
        value = metrics[deciding(metrics)]
        if math.isfinite(value) and not self.trial(number).state.is_finished():
            self.optuna._storage.set_trial_intermediate_value(self.trial(number)._trial_id, epoch, value)

    def _running(self, number: int) -> optuna.Trial:
        return optuna.Trial(self.optuna, self.trial(number)._trial_id)


def _again(number: int) -> str:
    """Returns the study attribute for a trial's corrected cost: Optuna does not allow changes of finished trials."""
    return f"cost of trial {number}, measured again"


class _Shared(FrozenTrial):
    """A trial that storages do not copy: Optuna's deep copies are slow, and a rehearsal changes no trial."""

    def __init__(self, trial: FrozenTrial) -> None:
        vars(self).update(vars(trial))

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self


def balanced(architectures: Sequence[Architecture], gang: int) -> list[Architecture]:
    """Orders architectures so that each `gang` consecutive ones have about as many weights in total as the others."""
    if gang == 1:
        return list(architectures)
    full, rest = divmod(len(architectures), gang)
    seats = [gang] * full + [rest] * bool(rest)
    gangs: list[list[Architecture]] = [[] for _ in seats]
    for one in sorted(architectures, key=lambda one: -one.size):
        roomy = (place for place, seat in enumerate(seats) if len(gangs[place]) < seat)
        gangs[min(roomy, key=lambda place: sum(other.size for other in gangs[place]))].append(one)
    return [one for members in gangs for one in members]


def _architecture(params: Mapping[str, Any]) -> Architecture | None:
    """Makes an architecture; returns None for an invalid point of the grid, as where heads do not divide the size."""
    try:
        return Architecture.of(params)
    except ConfigError:
        return None


def distributions_of(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Returns the dimensions of a space as Optuna distributions, numbers in rising order."""
    return {name: CategoricalDistribution(ordered(values)) for name, values in space.reachable.items()}


def ordered(values: Sequence[Any]) -> Sequence[Any]:
    return sorted(values) if all(isinstance(value, int) for value in values) else values


def deciding(metrics: Mapping[str, float]) -> str:
    """Returns the name of the deciding metric: the first, or `loss` if there is no other."""
    return next((name for name in metrics if name != "loss"), "loss")


def flat(metrics: Mapping[str, float], cost: Cost, teacher: Cost | None) -> dict[str, float]:
    """Returns a student's metrics, parameters and latencies as flat attributes, which optuna-dashboard can plot."""
    figures = {**metrics, "parameters_m": cost.parameters / 1e6}
    for device, latency in cost.latency.items():
        figures[f"latency_{device}_ms"] = latency.median
        if teacher and device in teacher.latency:
            figures[f"speedup_{device}"] = teacher.latency[device].median / latency.median
    return figures
