"""The study: the trials of a search, stored by Optuna in an append-only journal.

A search folder holds one journal with two Optuna studies, named after their stages: `mini` (the candidates, scored by
mini-KD) and `full` (the finalists, distilled in full). The user attributes of trials hold the other fields of an
`Observation`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from kdnas.base.metrics import deciding_metric
from kdnas.costs.cost import Cost
from kdnas.models.architecture import Architecture
from kdnas.search.gangs import unfinished
from kdnas.search.identity import Identity
from kdnas.search.job import Job
from kdnas.search.observation import Observation, dashboard_values


class Study:
    """The trials of one stage.

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
        self.identity = Identity(self.optuna)
        self._architectures: list[Architecture] = []

    # -- reading

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Returns the trials in one of the states, or all trials, by number."""
        return self.optuna.get_trials(deepcopy=False, states=states or None)

    def counted(self, *states: TrialState) -> list[FrozenTrial]:
        """Returns the trials that were run under the study's current settings (see `count_only`)."""
        generation = self.identity.generation
        return [trial for trial in self.trials(*states) if trial.user_attrs.get("generation", "") == generation]

    @property
    def observations(self) -> list[Observation]:
        """The finished trials, in the order they were proposed."""
        known = self.optuna.user_attrs
        trials = self.counted(TrialState.COMPLETE)
        return [Observation.of(trial, known.get(_correction(trial.number))) for trial in trials]

    def trial(self, number: int) -> FrozenTrial:
        """Returns the trial with a number."""
        storage = self.optuna._storage
        return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(self.optuna._study_id, number))

    def architecture(self, number: int) -> Architecture:
        """Returns the architecture of the trial with a number."""
        return Architecture.of(self.trial(number).params)

    def architectures(self) -> list[Architecture]:
        """Returns the architecture of every trial, by number. A trial's never changes, so each is read once."""
        self._architectures += [Architecture.of(trial.params) for trial in self.trials()[len(self._architectures) :]]
        return self._architectures

    def jobs(self) -> list[Job]:
        """Returns the jobs with running trials, in the order they were proposed."""
        stage, search = self.optuna.study_name, self.identity.search or ""
        return [
            Job(
                kind=stage,
                trials=tuple(trial.number for trial in gang),
                architectures=tuple(Architecture.of(trial.params) for trial in gang),
                search=search,
                fidelity=gang[0].user_attrs.get("fidelity", {}),
            )
            for gang in unfinished(self.trials())
        ]

    # -- what is known of the whole search

    @property
    def teacher(self) -> Cost | None:
        """The teacher's cost; None if it has not been measured."""
        known = self.optuna.user_attrs.get("teacher")
        return Cost.of(known) if known else None

    @teacher.setter
    def teacher(self, cost: Cost) -> None:
        """Stores the teacher's cost, unless one is known that is as reliable."""
        known = self.teacher
        if known is None or (known.busy and not cost.busy):
            self.optuna.set_user_attr("teacher", cost.to_dict())

    @property
    def precision(self) -> str | None:
        """The precision that every candidate is trained in, as Lightning names it; None if it is not known."""
        return self.optuna.user_attrs.get("precision")

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

    def store_prepared(self, facts: Mapping[str, Any]) -> None:
        """Stores the values that the prepare job has determined (see `kdnas.base.run_folder.write_prepared`).

        An earlier precision is kept: the rewards of one search must be comparable.
        """
        for name, value in facts.items():
            if name == "teacher":
                self.teacher = Cost.of(value)
            elif name != "precision" or self.precision is None:
                self.optuna.set_user_attr(name, value)

    @property
    def order(self) -> list[int] | None:
        """The numbers of the finished trials in the search's final order; None while the search has not finished."""
        return self.optuna.user_attrs.get("order")

    @order.setter
    def order(self, numbers: Sequence[int] | None) -> None:
        self.optuna.set_user_attr("order", numbers)

    def count_only(self, settings: Mapping[str, Any]) -> bool:
        """Counts only the trials of these settings from now on.

        Other trials stay in the study, and count again when their settings are back.

        Returns:
            Whether there were earlier trials that are not counted any more.
        """
        counted = self.counted()
        if not self.identity.begin_generation(settings):
            return False
        for trial in self.trials(TrialState.RUNNING):
            self.fail(trial.number, "its settings have changed")
        return bool(counted)

    # -- adding trials

    def add(
        self,
        architecture: Architecture,
        attributes: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution] | None = None,
        system_attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Adds a running trial in one write.

        Args:
            attributes: the trial's user attributes, `episode` and `origin` among them.
            distributions: the searched dimensions; None for a single choice each, the architecture's own.
            system_attributes: what a sampler has noted on the trial.
        """
        params = architecture.to_dict()
        single: dict[str, BaseDistribution] = {name: CategoricalDistribution([value]) for name, value in params.items()}
        generation = self.identity.generation
        self.optuna.add_trial(
            optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params=params,
                distributions=dict(distributions or single),
                user_attrs={**attributes, **({"generation": generation} if generation else {})},
                system_attrs={k: v for k, v in (system_attributes or {}).items() if k != "fixed_params"},
            )
        )

    def split(self, gang: Iterable[int]) -> None:
        """Splits a gang: each of its running trials gets a job of its own."""
        for number in gang:
            if not self.trial(number).state.is_finished():
                self._running(number).set_user_attr("alone", True)

    # -- reporting results

    def report(self, number: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Records a running trial's deciding metric after an epoch as its intermediate value."""
        value = metrics[deciding_metric(metrics)]
        if math.isfinite(value) and not self.trial(number).state.is_finished():
            self.optuna._storage.set_trial_intermediate_value(self.trial(number)._trial_id, epoch, value)

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
        for name, value in (dashboard_values(metrics, cost, self.teacher) | more).items():
            trial.set_user_attr(name, value)
        trial.set_user_attr("cost", cost.to_dict())
        self.optuna.tell(number, reward)

    def fail(self, number: int, reason: str) -> None:
        """Records that a trial failed. A finished trial stays as it is."""
        if not self.trial(number).state.is_finished():
            self._running(number).set_user_attr("reason", reason)
            self.optuna.tell(number, state=TrialState.FAIL)

    @property
    def busy(self) -> bool:
        """Whether a latency of the teacher or of a trial was measured on a busy host."""
        seen = self.observations
        costs = [self.teacher, *(one.cost for one in seen)]
        return any(one.estimated for one in seen) or any(cost.busy for cost in costs if cost)

    def correct(self, number: int, cost: Cost, reward: float, estimated: bool) -> None:
        """Stores the corrected cost and reward of a finished trial; the controller has learned from the earlier ones.

        Args:
            estimated: whether the reward is still computed with a latency of a busy host, the teacher's.
        """
        values = {"cost": cost.to_dict(), "reward": reward, "estimated": estimated}
        self.optuna.set_user_attr(_correction(number), values)

    def _running(self, number: int) -> optuna.Trial:
        return optuna.Trial(self.optuna, self.trial(number)._trial_id)


def _correction(number: int) -> str:
    """Returns the study attribute for a trial's corrected cost: Optuna does not allow changes of finished trials."""
    return f"cost of trial {number}, measured again"
