"""The metrics of tasks, for any number of classes, with a value for every outcome.

A correlation is 0 where there is none to speak of. That is scikit-learn's answer for Matthews' coefficient; SciPy
answers NaN, which no choice of a best epoch can use. torchmetrics gives a large positive or negative number for a
classifier that knows one class only, NaN for a regressor that knows one value only, and a rank correlation near 1 for
one that gives NaN.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import (
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)
from torchmetrics.utilities.data import dim_zero_cat

from kdnas.errors import ConfigError, require, require_whole

log = logging.getLogger(__name__)
REGRESSION, CLASSIFICATION = "torchmetrics.regression", "torchmetrics.classification"
"""Where the metrics of numbers and those of classes come from."""


def task_metrics(metrics: Mapping[str, Any], deciding: str | None, num_labels: int) -> dict[str, Metric]:
    """Returns a task's metrics, the deciding one first.

    Args:
        deciding: the name of the metric that picks the best epoch, is rewarded, and is shown first; None for the first.
        num_labels: classes of the task; 1 for a regression.

    Raises:
        ConfigError: no such metric, or one that does not go with the number of classes.
    """
    require(isinstance(metrics, Mapping) and bool(metrics), "task.metrics", metrics, "at least one, by name")
    first = next(iter(metrics)) if deciding is None else deciding
    require(first in metrics, "task.metric", first, f"one of {', '.join(metrics)}")
    for name, metric in metrics.items():
        _check(name, metric, num_labels)
    return {first: metrics[first], **metrics}


def _check(name: str, metric: Metric, num_labels: int) -> None:
    """Refuses a metric of numbers for classes, or one of classes for numbers or for another number of classes."""
    origins = [base.__module__ for base in type(metric).__mro__]
    if num_labels > 1 and any(origin.startswith(REGRESSION) for origin in origins):
        raise ConfigError(f"task.num_labels={num_labels}: must be 1; task.metrics.{name} is of numbers, not of classes")
    if num_labels == 1 and any(origin.startswith(CLASSIFICATION) for origin in origins):
        raise ConfigError(f"task.num_labels=1: must be from 2; task.metrics.{name} is of classes, not of numbers")
    every = torch.arange(num_labels) if num_labels > 1 else torch.tensor([0.5, 1.5])
    try:
        metric.clone().update(every, every)
    except Exception as error:  # torchmetrics raises what comes to hand
        raise ConfigError(
            f"task.metrics.{name}: does not go with task.num_labels={num_labels} ({str(error).splitlines()[0]})"
        ) from error


def _require_classes(num_labels: int) -> None:
    require_whole("task.num_labels", num_labels, 1)
    require(num_labels > 1, "task.num_labels", num_labels, "from 2; the task's metrics are of classes")


def accuracy(num_labels: int) -> Metric:
    """The share of rows that are classified correctly."""
    _require_classes(num_labels)
    return MulticlassAccuracy(num_labels, average="micro")


def f1(num_labels: int) -> Metric:
    """F1 of the second of two classes, as GLUE has it; of more classes, the mean of each one's (macro F1)."""
    _require_classes(num_labels)
    if num_labels == 2:
        return BinaryF1Score()
    log.info("task.num_labels=%d: f1 is the mean over the classes of each one's F1 (macro F1)", num_labels)
    return macro_f1(num_labels)


def macro_f1(num_labels: int) -> Metric:
    """The mean over the classes of each one's F1."""
    _require_classes(num_labels)
    return MulticlassF1Score(num_labels, average="macro")


class Matthews(MulticlassConfusionMatrix):
    """Matthews' correlation coefficient, of several classes R_k; 0 if all labels or predictions are of one class."""

    def __init__(self, num_labels: int = 2) -> None:
        _require_classes(num_labels)
        super().__init__(num_labels)

    def compute(self) -> Tensor:
        counts = super().compute().cpu().double()
        labels, predicted, rows = counts.sum(1), counts.sum(0), counts.sum()
        covariance = counts.trace() * rows - labels @ predicted
        margins = (rows**2 - labels @ labels) * (rows**2 - predicted @ predicted)
        return torch.where(margins > 0, covariance / margins.sqrt(), 0.0).float()


class Pearson(PearsonCorrCoef):
    """Pearson's correlation coefficient; 0 if labels or predictions are all the same, or are not finite."""

    def compute(self) -> Tensor:
        return super().compute().nan_to_num(0.0)


class Spearman(SpearmanCorrCoef):
    """Spearman's rank correlation coefficient; 0 if labels or predictions are all the same, or are not finite."""

    def compute(self) -> Tensor:
        value = super().compute()
        finite = dim_zero_cat(self.preds).isfinite().all() and dim_zero_cat(self.target).isfinite().all()
        return value if finite else torch.zeros_like(value)
