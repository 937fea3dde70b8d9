"""An observation: one finished trial, as it is read from Optuna's study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial

from kdnas.costs.cost import Cost
from kdnas.models.architecture import Architecture


@dataclass(frozen=True)
class Observation:
    """One finished trial: its architecture and its results."""

    trial: int
    episode: int
    architecture: Architecture
    origin: str  # who chose the architecture: `random` or `controller`
    prediction: float | None  # the reward that the controller predicted, if it predicts one
    reward: float
    metrics: Mapping[str, float] = field(default_factory=dict)  # held-out, `loss` among them
    cost: Cost | None = None
    seconds: float = 0.0  # of the training
    estimated: bool = False  # whether the reward was computed with a latency of a busy host, the teacher's or its own
    candidate: int | None = None  # of a full distillation, the number of the candidate's trial by mini-KD
    export: str | None = None  # the folder of the exported student
    fidelity: Mapping[str, Any] = field(default_factory=dict)  # the settings of this training alone (see `Job`)

    @classmethod
    def of(cls, trial: FrozenTrial, corrected: Mapping[str, Any] | None = None) -> Observation:
        """Reads a finished trial; `corrected`, its cost and reward measured again, replace the first ones."""
        attributes = {**trial.user_attrs, "reward": trial.value, **(corrected or {})}
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
            candidate=attributes.get("candidate"),
            export=attributes.get("export"),
            fidelity=attributes.get("fidelity", {}),
        )


def dashboard_values(metrics: Mapping[str, float], cost: Cost, teacher: Cost | None) -> dict[str, float]:
    """Returns a student's metrics, parameters and latencies as flat attributes, which optuna-dashboard can plot."""
    values = {**metrics, "parameters_m": cost.parameters / 1e6}
    for device, latency in cost.latency.items():
        values[f"latency_{device}_ms"] = latency.median
        if teacher and device in teacher.latency:
            values[f"speedup_{device}"] = teacher.latency[device].median / latency.median
    return values
