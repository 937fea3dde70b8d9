"""Facts of a search besides its trials, kept in the attributes of Optuna's study."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import optuna

from kdnas.base.identity import SOURCES
from kdnas.costs.cost import Cost


class Stored:
    """A value in the attributes of Optuna's study, under the name that it has in the class."""

    def __init__(self, default: Any = None) -> None:
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, facts: Facts, owner: type) -> Any:
        return facts.optuna.user_attrs.get(self.name, self.default)

    def __set__(self, facts: Facts, value: Any) -> None:
        facts.optuna.set_user_attr(self.name, value)


class Facts:
    """The facts of one study; None where they are not known yet."""

    optuna: optuna.Study
    search = Stored()  # the name of the search; a job of another search must not report to it
    settings = Stored()  # everything that decides the rewards, by dotted key
    generation = Stored("")  # a digest of the settings that trials are counted under; empty where these never change
    order = Stored()  # the numbers of the finished trials in the search's final order, once the search has finished
    precision = Stored()  # the precision that every candidate is trained in, as Lightning names it
    held_out_rows = Stored()  # the number of examples that the held-out metrics are computed on
    teacher_metrics = Stored({})  # the teacher's own held-out metrics by name; empty where the objective has no metric
    chance = Stored({})  # the held-out metrics of the best constant prediction by name, likewise

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

    def store_prepared(self, facts: Mapping[str, Any]) -> None:
        """Stores what the prepare job has determined; an earlier precision is kept: rewards must be comparable."""
        for name, value in facts.items():
            if name == "teacher":
                self.teacher = Cost.of(value)
            elif name != "precision" or self.precision is None:
                self.optuna.set_user_attr(name, value)

    def begin_generation(self, settings: Mapping[str, Any]) -> bool:
        """Stores the settings that trials are counted under from now on; returns whether they differ from before."""
        before, self.settings = self.generation, dict(settings)
        decisive = {key: value for key, value in settings.items() if key != SOURCES}
        self.generation = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
        return self.generation != before
