"""Recipes: the class of the student model, and the objectives of its training stages.

`conf/objective` names these functions. They refuse wrong settings before a student or a teacher is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedConfig

from kdnas.base.errors import ConfigError, is_number, require, require_whole
from kdnas.distillation.mapping import layer_mapping
from kdnas.distillation.objectives import (
    REPRESENTATION_LOSSES,
    REPRESENTATION_TOKENS,
    HardLabels,
    HiddenStateObjective,
    Logits,
    MaskedTokens,
    Objective,
    Representation,
    check_normalize,
)
from kdnas.distillation.teacher import Needs
from kdnas.models.heads import Encoder, Head, MaskedLM
from kdnas.tasks import Classification, Regression, Task

ObjectiveFactory = Callable[[PreTrainedConfig, PreTrainedConfig], Objective]
"""Makes a student's objective from its config and the teacher's."""


@dataclass(frozen=True)
class Stage:
    """A stage of a training, with one objective.

    Args:
        name: the name that users see.
        objective: makes each student's objective.
        epochs: the number of epochs; None for all epochs of the Trainer.
        learning_rate: the peak learning rate; None for the module's.
        gradual: whether to begin with the head alone and unfreeze top-down; in the last epoch everything is trained.
        monitor: the held-out metric that decides which weights the next stage begins with: `loss`, or a metric
            (larger is better).
    """

    name: str
    objective: ObjectiveFactory
    epochs: int | None = None
    learning_rate: float | None = None
    gradual: bool = False
    monitor: str = "loss"


@dataclass(frozen=True)
class Recipe:
    """The settings of a distillation.

    Args:
        head: the kind of student model.
        stages: the stages in order; either one with all epochs of the Trainer, or each with its own epochs.
        task: the task whose metrics are computed on held-out rows; None for none.
    """

    head: Head
    stages: Sequence[Stage]
    task: Task | None = None

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The task's metrics, by name."""
        return self.task.metrics if self.task else {}

    def needs(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> Needs:
        """Returns the teacher outputs that the stages of a student need."""
        with torch.device("meta"):
            return Needs.all(stage.objective(student, teacher).needs for stage in self.stages)

    @property
    def epochs(self) -> int | None:
        """The number of epochs of all stages; None where the Trainer decides."""
        epochs = [stage.epochs for stage in self.stages if stage.epochs is not None]
        return sum(epochs) if epochs else None

    def stage_at(self, epoch: int) -> tuple[int, int]:
        """Returns the index of an epoch's stage, and the number of epochs of that stage before it.

        Epochs past the end belong to the last stage.
        """
        begin = 0
        for index, stage in enumerate(self.stages):
            if stage.epochs is None or epoch < begin + stage.epochs or index == len(self.stages) - 1:
                return index, epoch - begin
            begin += stage.epochs
        raise AssertionError("a recipe has stages")


def hidden_states(mapping: str = "uniform_last", normalize: str = "none") -> Recipe:
    """Makes the recipe of KD-NAS v2, Eq. 1: see `HiddenStateObjective` for the settings."""
    layer_mapping(mapping, student=1, teacher=1)
    check_normalize(normalize)
    objective = partial(HiddenStateObjective, mapping=mapping, normalize=normalize)
    return Recipe(Encoder(), [Stage("hidden states", objective)])


def xtremedistil(
    num_labels: int,
    metrics: Mapping[str, Any],
    representation: Mapping[str, Any],
    logits: Mapping[str, Any],
    labels: Mapping[str, Any],
    metric: str | None = None,
) -> Recipe:
    """Makes the recipe of KD-NAS v1, Eq. 1-3: representation, logits, hard labels, each in its own stage.

    Args:
        num_labels: the number of classes; 1 for regression.
        metrics: the task's metrics, torchmetrics objects by name.
        representation: `loss` and `tokens` of `Representation`, `epochs`, `learning_rate`.
        logits, labels: `epochs`, `learning_rate`, and `gradual`: begin with the head alone and unfreeze top-down, as
            the public code of XtremeDistil does.
        metric: the name of the metric that decides which weights of the last stage are the best; None for the first.
    """
    task: Task
    if num_labels == 1:  # until conf/objective names the task
        task = Regression(metrics=metrics, metric=metric)
    else:
        task = Classification(num_labels, metrics=metrics, metric=metric)
    chosen, settings = representation_of(representation)
    return Recipe(
        task.head,
        stages(
            representation=(chosen, settings, "loss"),
            logits=(lambda student, teacher: Logits(), logits, "loss"),
            labels=(lambda student, teacher: HardLabels(task.loss), labels, next(iter(task.metrics))),
        ),
        task,
    )


def masked_lm(representation: Mapping[str, Any], tokens: Mapping[str, Any]) -> Recipe:
    """Makes the recipe of KD-NAS v1, section 4.2: the last hidden states of masked text, then masked LM.

    Without the first stage this is pre-training (Appendix A), and needs only the teacher's config and tokenizer.

    Args:
        representation: `loss` of `Representation` (here over all real tokens), `epochs`, `learning_rate`.
        tokens: `epochs` (null for the Trainer's, if this is the only stage), `learning_rate`, `gradual`.
    """
    chosen, settings = representation_of({"tokens": "all", **representation})
    return Recipe(
        MaskedLM(),
        stages(
            representation=(chosen, settings, "loss"), tokens=(lambda student, teacher: MaskedTokens(), tokens, "loss")
        ),
    )


def representation_of(settings: Mapping[str, Any]) -> tuple[ObjectiveFactory, dict[str, Any]]:
    """Returns the objective of a representation stage, and the rest of its settings."""
    chosen, rest = {}, dict(settings)
    for key, allowed in (("loss", tuple(REPRESENTATION_LOSSES)), ("tokens", REPRESENTATION_TOKENS)):
        chosen[key] = rest.pop(key)
        if chosen[key] not in allowed:
            raise ConfigError(f"objective.representation.{key}={chosen[key]}: must be one of {', '.join(allowed)}")
    return partial(Representation, **chosen), rest


def stages(**parts: tuple[ObjectiveFactory, Mapping[str, Any], str]) -> list[Stage]:
    """Makes the stages that have epochs, each from its objective, its settings and its monitor."""
    made = []
    for name, (objective, settings, monitor) in parts.items():
        epochs, rate = settings["epochs"], settings["learning_rate"]
        alone = all(other["epochs"] == 0 for _, other, _ in parts.values() if other is not settings)
        if epochs is None and not alone:
            raise ConfigError(f"objective.{name}.epochs=null: must be a whole number beside other stages")
        if epochs is not None:
            require_whole(f"objective.{name}.epochs", epochs, 0)
        gradual = settings.get("gradual", False)
        if not isinstance(gradual, bool):
            raise ConfigError(f"objective.{name}.gradual={gradual}: must be true or false")
        require(is_number(rate) and rate > 0, f"objective.{name}.learning_rate", rate, "above 0")
        if epochs != 0:
            made.append(Stage(name, objective, epochs, rate, gradual, monitor))
    if not made:
        raise ConfigError(f"objective: {', '.join(f'{name}.epochs=0' for name in parts)}: one must be above 0")
    return made
