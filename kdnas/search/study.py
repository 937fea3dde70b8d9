"""The study: the trials of a search, stored by Optuna in an append-only journal.

A search folder holds one journal with an Optuna study for each kind of job that has trials: `mini` (the candidates,
scored by mini-KD), `full` (the finalists, distilled in full) and those of a user. The user attributes of trials hold
the other fields of an `Observation`.
"""

import math
import warnings
from collections.abc import Iterable, Mapping
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
from kdnas.search.facts import Facts
from kdnas.search.gangs import unfinished
from kdnas.search.job import Job
from kdnas.search.observation import Observation, dashboard_values


class Study(Facts):
    """The trials of one kind of job, as `mini` or `full`; `controller` learns from each trial as it finishes."""

    def __init__(self, storage: BaseStorage, kind: str = "mini", controller: BaseSampler | None = None) -> None:
        self.optuna = optuna.create_study(
            storage=storage,
            study_name=kind,
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
        """Returns the trials in one of the states, or all trials, by number."""
        return self.optuna.get_trials(deepcopy=False, states=states or None)

    def counted(self, *states: TrialState) -> list[FrozenTrial]:
        """Returns the trials that were run under the study's current settings (see `count_only`)."""
        generation = self.generation
        return [trial for trial in self.trials(*states) if trial.user_attrs.get("generation", "") == generation]

    @property
    def observations(self) -> list[Observation]:
        """The finished trials, in the order they were proposed."""
        known = self.optuna.user_attrs
        trials = self.counted(TrialState.COMPLETE)
        return [Observation.of(trial, known.get(_correction(trial.number))) for trial in trials]

    def trial(self, number: int) -> FrozenTrial:
        storage = self.optuna._storage
        return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(self.optuna._study_id, number))

    def architecture(self, number: int) -> Architecture:
        return Architecture.of(self.trial(number).params)

    def architectures(self) -> list[Architecture]:
        """Returns the architecture of every trial, by number. A trial's never changes, so each is read once."""
        self._architectures += [Architecture.of(trial.params) for trial in self.trials()[len(self._architectures) :]]
        return self._architectures

    def jobs(self) -> list[Job]:
        """Returns the jobs with running trials, in the order they were proposed."""
        search, jobs = self.search or "", []
        for gang in unfinished(self.trials()):
            numbers = tuple(trial.number for trial in gang)
            architectures = tuple(Architecture.of(trial.params) for trial in gang)
            fidelity = gang[0].user_attrs.get("fidelity", {})
            jobs.append(Job(self.optuna.study_name, numbers, architectures, search, fidelity))
        return jobs

    def count_only(self, settings: Mapping[str, Any]) -> bool:
        """Counts only the trials of these settings from now on; returns whether any earlier trial is left out."""
        counted = self.counted()
        if not self.begin_generation(settings):
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
        generation = {"generation": self.generation} if self.generation else {}
        trial = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=params,
            distributions=dict(distributions or single),
            user_attrs={**attributes, **generation},
            system_attrs={k: v for k, v in (system_attributes or {}).items() if k != "fixed_params"},
        )
        self.optuna.add_trial(trial)

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
        """Records the results of a running trial, and `more` attributes; a trial that has finished stays as it is."""
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
        """Stores the corrected cost and reward of a finished trial, still `estimated` if the teacher's latency is."""
        values = {"cost": cost.to_dict(), "reward": reward, "estimated": estimated}
        self.optuna.set_user_attr(_correction(number), values)

    def _running(self, number: int) -> optuna.Trial:
        return optuna.Trial(self.optuna, self.trial(number)._trial_id)


def _correction(number: int) -> str:
    """Returns the study attribute for a trial's corrected cost: Optuna does not allow changes of finished trials."""
    return f"cost of trial {number}, measured again"
