"""Held-out metrics of the teacher and of constant predictions (chance), to compare a student's metrics with."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kdnas.base.errors import ConfigError
from kdnas.datamodules.base import EncodedDataModule
from kdnas.models.classes import names_of
from kdnas.modules.base import ExportingModule
from kdnas.modules.distiller import StudentDistiller
from kdnas.tasks import LabelledTask
from kdnas.training.split_metrics import SplitMetrics

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Baselines:
    """The held-out metrics to compare with, the deciding one first; empty if the task has no metric.

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
        """The end of a message about a model whose deciding metric is not above chance."""
        return f"no better than {self.constant} ({self.metric} {self.chance[self.metric]:.4f})"

    def warn(self, results: Sequence[Mapping[str, float]]) -> None:
        """Logs a warning for each model whose deciding metric is not above chance."""
        for metrics in results if self.chance else ():
            if not metrics[self.metric] > self.chance[self.metric]:
                log.warning("held-out %s %.4f is %s", self.metric, metrics[self.metric], self.at_chance)


def baselines(module: ExportingModule, data: EncodedDataModule, device: torch.device) -> Baselines:
    """Computes the held-out metrics of chance and of an open teacher; refuses a teacher no better than chance."""
    metrics = copy.deepcopy(module.held_out[0]).cpu()
    if (task := metrics.task) is None:
        return Baselines()
    chance, constant = chance_of(task, metrics, data)
    if not isinstance(module, StudentDistiller) or module.teacher is None:
        return Baselines(chance, constant)
    if module.class_order:
        log.info("the teacher's classes are reordered to match the data's, %s", ", ".join(data.class_names or ()))
    found = Baselines(chance, constant, teacher_metrics(module, task, metrics, data, device))
    values = ", ".join(f"{name} {value:.4f}" for name, value in found.teacher.items())
    log.info("the teacher's held-out %s; chance: %s %.4f", values, found.metric, chance[found.metric])
    if not found.teacher[found.metric] > chance[found.metric]:
        raise ConfigError(
            f"teacher.path={module.teacher_path}: its held-out {found.metric} is "
            f"{found.teacher[found.metric]:.4f}, {found.at_chance}; must be trained on this task"
        )
    return found


def chance_of(task: LabelledTask, metrics: SplitMetrics, data: EncodedDataModule) -> tuple[dict[str, float], str]:
    """Returns the best value of a constant prediction for each metric, and a description of the one that decides."""
    splits = data.held_out_labels
    results = {}
    for constant, logits in task.constants(splits[0], data.class_names).items():
        metrics.reset()
        for split, labels in enumerate(splits):
            metrics.update(split, logits.float().expand(len(labels), -1), labels)
        results[constant] = finite(metrics.compute())
    best = {name: max(values[name] for values in results.values()) for name in metrics.names}
    return best, max(results, key=lambda constant: results[constant][metrics.names[0]])


def teacher_metrics(
    module: StudentDistiller, task: LabelledTask, metrics: SplitMetrics, data: EncodedDataModule, device: torch.device
) -> dict[str, float]:
    """Computes the teacher's held-out metrics; refuses outputs that are not finite, and classes in another order."""
    assert module.teacher is not None  # checked by the caller
    metrics.reset()
    first: list[tuple[Tensor, Tensor]] = []
    for split, batch in data.held_out_batches():
        logits = module.teacher(batch.to(device), {task.feature})[task.feature].cpu()
        labels = batch["labels"].cpu()
        metrics.update(split, logits, labels)
        if split == 0:
            first.append((task.decode(logits), labels))
    if not metrics.finite:
        raise ConfigError(f"teacher.path={module.teacher_path}: its outputs for held-out rows are NaN or infinite")
    predicted, labels = (torch.cat(part) for part in zip(*first, strict=True))
    if order := task.fitting_order(predicted, labels):
        raise other_order(module, data.class_names, order, predicted, labels)
    return finite(metrics.compute())


def other_order(
    module: StudentDistiller, names: Sequence[str] | None, order: Sequence[int], predicted: Tensor, labels: Tensor
) -> ConfigError:
    """Makes the error of class ids, (rows,), of a teacher; `order` maps them to those of the data's labels."""
    wanted = names or [f"class_{i}" for i in range(len(order))]
    ids = module.class_order or range(len(order))
    right = {own: wanted[fits] for own, fits in zip(ids, order, strict=True)}
    id2label = ", ".join(f'"{own}": "{right[own]}"' for own in sorted(right))
    also = "" if names else f", and task.labels=[{','.join(wanted)}]"
    known = names_of(module.teacher_config)
    before, after = predicted == labels, torch.tensor(order)[predicted] == labels
    return ConfigError(
        f"teacher.path={module.teacher_path}: its classes ({', '.join(known) if known else 'without names'}) come in "
        f"another order than the data's: accuracy {before.float().mean():.4f}, in the right order "
        f"{after.float().mean():.4f}; must have id2label {{{id2label}}} in its config.json{also}"
    )


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns metrics with 0 in place of undefined values."""
    return {name: value if abs(value) < float("inf") else 0.0 for name, value in metrics.items()}
