"""Held-out metrics of the teacher and of constant predictions (chance), to compare a student's metrics with."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from kdnas.base.errors import ConfigError
from kdnas.datamodules.base import EncodedDataModule
from kdnas.models.classes import names_of
from kdnas.models.features import LOGITS
from kdnas.modules.base import ExportingModule
from kdnas.modules.distiller import StudentDistiller
from kdnas.training.split_metrics import SplitMetrics

log = logging.getLogger(__name__)
EVIDENT = 3
"""Standard deviations by which another order of the teacher's classes must fit the labels better to be refused."""


@dataclass(frozen=True)
class Judgement:
    """Held-out metrics of chance and of the teacher, the deciding one first; empty where the objective has no metric.

    Args:
        chance: for each metric, the best value that a constant prediction has.
        constant: the constant prediction that is best by the deciding metric, in words.
        teacher: the teacher's metrics; empty if no teacher is run.
    """

    chance: Mapping[str, float] = field(default_factory=dict)
    constant: str = ""
    teacher: Mapping[str, float] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """The name of the deciding metric."""
        return next(iter(self.chance))

    @property
    def at_chance(self) -> str:
        return f"no better than {self.constant} ({self.metric} {self.chance[self.metric]:.4f})"

    def warn(self, results: Sequence[Mapping[str, float]]) -> None:
        """Logs a warning for each model whose deciding metric is not above chance."""
        for figures in results if self.chance else ():
            if not figures[self.metric] > self.chance[self.metric]:
                log.warning("held-out %s %.4f is %s", self.metric, figures[self.metric], self.at_chance)


def judge(module: ExportingModule, data: EncodedDataModule, device: torch.device) -> Judgement:
    """Computes the metrics of chance and, for a distillation, of the teacher on the held-out rows.

    Args:
        module: the module; its teacher, if it has one, is open.
        data: the data module, after `setup`.
        device: the device that the teacher runs on.

    Raises:
        ConfigError: the teacher is not above chance, or its classes are evidently in another order than the data's.
    """
    metrics = copy.deepcopy(module.held_out[0]).cpu()
    if not metrics.names:
        return Judgement()
    chance, constant = chance_of(metrics, data, module.head.num_labels)
    judgement = Judgement(chance, constant)
    if not isinstance(module, StudentDistiller) or module.teacher is None:
        return judgement
    if module.class_order:
        log.info("the teacher's classes are put into the order of the data's, %s", ", ".join(data.class_names or ()))
    metrics.reset()
    answers: list[tuple[Tensor, Tensor]] = []
    for split, batch in data.held_out_batches():
        logits = module.teacher(batch.to(device), {LOGITS})[LOGITS].cpu()
        labels = batch["labels"].cpu()
        metrics.update(split, logits, labels)
        if split == 0 and logits.shape[-1] > 1:
            answers.append((logits.argmax(-1), labels))
    if not metrics.finite:
        raise ConfigError(f"teacher.path={module.teacher_path}: its outputs for held-out rows are NaN or infinite")
    judgement = Judgement(chance, constant, finite(metrics.compute()))
    told = ", ".join(f"{name} {value:.4f}" for name, value in judgement.teacher.items())
    log.info("the teacher's held-out %s; chance: %s %.4f", told, judgement.metric, chance[judgement.metric])
    if answers:
        check_order(module, data.class_names, *(torch.cat(part) for part in zip(*answers, strict=True)))
    if not judgement.teacher[judgement.metric] > chance[judgement.metric]:
        raise ConfigError(
            f"teacher.path={module.teacher_path}: its held-out {judgement.metric} is "
            f"{judgement.teacher[judgement.metric]:.4f}, {judgement.at_chance}; must be trained on this task"
        )
    return judgement


def chance_of(metrics: SplitMetrics, data: EncodedDataModule, num_labels: int) -> tuple[dict[str, float], str]:
    """Returns the best value of a constant prediction for each metric, and the prediction that decides, in words."""
    splits = [torch.tensor(list(rows["labels"])) for rows in (data.validation, *data.further.values()) if rows]
    names = data.class_names or [f"class {i}" for i in range(num_labels)]
    answers = {f"always predicting {name}": one_hot(torch.tensor(i), num_labels) for i, name in enumerate(names)}
    if num_labels == 1:
        answers = {"always predicting the mean": splits[0].double().mean()[None]}
    figures = {}
    for answer, logits in answers.items():
        metrics.reset()
        for split, labels in enumerate(splits):
            labels = labels.float() if num_labels == 1 else labels
            metrics.update(split, logits.float().expand(len(labels), -1), labels)
        figures[answer] = finite(metrics.compute())
    best = {name: max(values[name] for values in figures.values()) for name in metrics.names}
    return best, max(figures, key=lambda answer: figures[answer][metrics.names[0]])


def finite(figures: Mapping[str, float]) -> dict[str, float]:
    """Returns metrics with 0 in place of undefined values."""
    return {name: value if abs(value) < float("inf") else 0.0 for name, value in figures.items()}


def check_order(module: StudentDistiller, names: Sequence[str] | None, predicted: Tensor, labels: Tensor) -> None:
    """Refuses a teacher whose predictions fit the labels far better with its classes in another order."""
    count = module.head.num_labels
    fitting = (one_hot(predicted, count).T @ one_hot(labels, count)).argmax(1)  # the most frequent label of each
    if sorted(fitting.tolist()) != list(range(count)) or len(predicted.unique()) < count:
        return
    before, after = predicted == labels, fitting[predicted] == labels
    gained = int(after.sum() - before.sum())
    if not gained > EVIDENT * int((after != before).sum()) ** 0.5:  # a sign test
        return
    given = module.class_order or range(count)
    wanted = names or [f"class_{i}" for i in range(count)]
    labelled = {place: wanted[fits] for place, fits in zip(given, fitting.tolist(), strict=True)}
    told = ", ".join(f'"{place}": "{labelled[place]}"' for place in sorted(labelled))
    also = "" if names else f", and task.labels=[{','.join(wanted)}]"
    known = names_of(module.teacher_config)
    raise ConfigError(
        f"teacher.path={module.teacher_path}: its classes ({', '.join(known) if known else 'without names'}) come in "
        f"another order than the data's: accuracy {before.float().mean():.4f}, in the right order "
        f"{after.float().mean():.4f}; must have id2label {{{told}}} in its config.json{also}"
    )
