"""Objectives: the head of the student model, and the stages of its training, each a weighted sum of loss terms."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from kdnas.base.errors import ConfigError, is_number, mounted, require, require_switch, require_whole
from kdnas.base.metrics import LOSS
from kdnas.distillation.terms import LossTerm
from kdnas.distillation.weights import check_weights
from kdnas.models.features import Feature
from kdnas.models.heads import Encoder, Head
from kdnas.tasks import LabelledTask


@dataclass(frozen=True)
class Stage:
    """A stage of a training. Its loss is the weighted sum of its terms.

    Args:
        terms: the loss terms by name, as a config makes them.
        weights: the weights by the names of the terms, from 0; 1 for those without.
        epochs: the number of epochs; 0 leaves the stage out, None takes all epochs of the Trainer.
        learning_rate: the peak learning rate; None for the module's.
        gradual: whether to begin with the head alone and unfreeze top-down; in the last epoch everything is trained.
        monitor: the held-out metric that decides which weights the next stage begins with: `loss`, or a metric
            (larger is better); None for the deciding one.
        settings: the names of further values of the stage's config, which its terms refer to.
    """

    terms: Mapping[str, LossTerm]
    weights: Mapping[str, float] = field(default_factory=dict)
    epochs: int | None = None
    learning_rate: float | None = None
    gradual: bool = False
    monitor: str | None = "loss"
    name: str = ""
    settings: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        fits = isinstance(self.terms, Mapping) and bool(self.terms)
        require(fits, "terms", self.terms, "one or more loss terms, by name")
        for name, term in self.terms.items():
            free = str(name).isidentifier() and not hasattr(nn.ModuleDict(), name)  # terms are submodules by name
            require(free, f"terms.{name}", term, "under another name: letters, digits and _, as relations_2")
            require(isinstance(term, LossTerm), f"terms.{name}", term, "a loss term, with its _target_")
        check_weights("weights", self.weights, self.terms, default=1)
        if self.epochs is not None:
            require_whole("epochs", self.epochs, 0)
        rate = self.learning_rate
        require(rate is None or (is_number(rate) and rate > 0), "learning_rate", rate, "above 0")
        require_switch("gradual", self.gradual)

    def build(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> dict[str, LossTerm]:
        """Returns the terms of a student, by name, for its config and the teacher's."""
        terms = copy.deepcopy(dict(self.terms))
        for name, term in terms.items():
            with mounted(f"objective.{self.name}.terms.{name}"):
                term.build(student, teacher)
        return terms


@dataclass(frozen=True)
class Objective:
    """The objective of a distillation: the head of the student model, and its stages.

    Args:
        stages: the stages in order; either one with all epochs of the Trainer, or each with its own epochs.
        task: the task of the rows' labels, whose metrics are computed on held-out rows; None for none.
        settings: the keys of further values of the config, which terms refer to.
    """

    head: Head
    stages: Sequence[Stage]
    task: LabelledTask | None = None
    settings: frozenset[str] = frozenset()

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The task's metrics by name, torchmetrics objects; the deciding one first."""
        return self.task.metrics if self.task else {}

    @property
    def metric_names(self) -> list[str]:
        """The names of the held-out losses and metrics; each term's loss is one if its stage has several."""
        terms = (name for stage in self.stages if len(stage.terms) > 1 for name in stage.terms)
        return [LOSS, *dict.fromkeys(f"{LOSS}_{name}" for name in terms), *self.metrics]

    def teacher_features(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> frozenset[Feature]:
        with torch.device("meta"):
            built = [stage.build(student, teacher) for stage in self.stages]
        return frozenset().union(*(term.teacher for terms in built for term in terms.values()))

    @property
    def epochs(self) -> int | None:
        """The number of epochs of all stages; None where the Trainer decides."""
        epochs = [stage.epochs for stage in self.stages if stage.epochs is not None]
        return sum(epochs) if epochs else None

    def stage_at(self, epoch: int) -> tuple[int, int]:
        """Returns the index of the stage of an epoch (past the end, the last), and the stage's epochs before it."""
        begin = 0
        for index, stage in enumerate(self.stages):
            if stage.epochs is None or epoch < begin + stage.epochs or index == len(self.stages) - 1:
                return index, epoch - begin
            begin += stage.epochs
        raise AssertionError("an objective has stages")


def make_stage(**values: Any) -> Stage:
    """Makes a stage from its config: the arguments of `Stage`, and settings that its terms refer to."""
    own = {name: value for name, value in values.items() if name in {argument.name for argument in fields(Stage)}}
    return Stage(**own, settings=frozenset(values) - frozenset(own))


def make_objective(head: Head | None = None, task: LabelledTask | None = None, **parts: Any) -> Objective:
    """Makes an objective from its config (`conf/objective`).

    Args:
        head: the kind of student model; None for the task's.
        parts: the stages by name, in order, and settings that their terms refer to.
    """
    require(task is None or isinstance(task, LabelledTask), "task", task, "a task of labelled rows, as task=rte")
    head = head or (task.head if task else Encoder())
    deciding = next(iter(task.metrics if task else ()), "loss")
    stages = {
        name: replace(part, name=name, monitor=part.monitor or deciding)
        for name, part in parts.items()
        if isinstance(part, Stage)
    }
    trained = [stage for stage in stages.values() if stage.epochs != 0]
    for stage in trained:
        if stage.epochs is None and len(trained) > 1:
            raise ConfigError.of(f"{stage.name}.epochs", "=null: must be a whole number beside other stages")
    if not stages:
        raise ConfigError("objective: has no stage; must have one or more, by name")
    if not trained:
        raise ConfigError(f"objective: {', '.join(f'{name}.epochs=0' for name in stages)}: one must be above 0")
    settings = {name for name in parts if name not in stages}
    settings.update(f"{name}.{setting}" for name, stage in stages.items() for setting in stage.settings)
    objective = Objective(head, trained, task, frozenset(settings))
    for stage in trained:
        own = [LOSS, *(f"{LOSS}_{name}" for name in stage.terms if len(stage.terms) > 1), *objective.metrics]
        require(stage.monitor in own, f"{stage.name}.monitor", stage.monitor, f"one of {', '.join(own)}")
    return objective
