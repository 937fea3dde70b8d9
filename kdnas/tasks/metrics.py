"""The metrics of tasks, for any number of classes, with a defined value in every case.

A correlation is 0 where it is undefined, as scikit-learn defines Matthews' coefficient. SciPy returns NaN, which
cannot be compared to choose the best epoch. torchmetrics returns a large positive or negative number for a classifier
that predicts one class only, NaN for a regressor that predicts one value only, and a rank correlation near 1 for a
regressor that predicts NaN.
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

from kdnas.base.errors import ConfigError, require, require_whole

log = logging.getLogger(__name__)
REGRESSION, CLASSIFICATION = "torchmetrics.regression", "torchmetrics.classification"
"""The packages of torchmetrics with the metrics of regression and of classification."""


def task_metrics(metrics: Mapping[str, Any], deciding: str | None, num_labels: int) -> dict[str, Metric]:
    """Returns a task's metrics, the deciding one first.

    Args:
        deciding: the name of the metric that picks the best epoch, is rewarded, and is shown first; None for the first.
        num_labels: the number of classes; 1 for regression.

    Raises:
        ConfigError: there is no such metric, or a metric does not fit the number of classes.
    """
    require(isinstance(metrics, Mapping) and bool(metrics), "task.metrics", metrics, "at least one, by name")
    first = next(iter(metrics)) if deciding is None else deciding
    require(first in metrics, "task.metric", first, f"one of {', '.join(metrics)}")
    for name, metric in metrics.items():
        _check(name, metric, num_labels)
    # Everything that compares models takes more for better.
    if deciding is not None and metrics[first].higher_is_better is False:
        raise ConfigError(f"task.metric={first}: must be a metric of which more is better")
    return {first: metrics[first], **metrics}


def _check(name: str, metric: Metric, num_labels: int) -> None:
    """Refuses a regression metric for classes, and a classification metric for another number of classes."""
    origins = [base.__module__ for base in type(metric).__mro__]
    if num_labels > 1 and any(origin.startswith(REGRESSION) for origin in origins):
        raise ConfigError(f"task.num_labels={num_labels}: must be 1; task.metrics.{name} is of numbers, not of classes")
    if num_labels == 1 and any(origin.startswith(CLASSIFICATION) for origin in origins):
        raise ConfigError(f"task.num_labels=1: must be from 2; task.metrics.{name} is of classes, not of numbers")
    every = torch.arange(num_labels) if num_labels > 1 else torch.tensor([0.5, 1.5])
    try:
        metric.clone().update(every, every)
    except Exception as error:  # torchmetrics can raise anything
        raise ConfigError(
            f"task.metrics.{name}: does not go with task.num_labels={num_labels} ({str(error).splitlines()[0]})"
        ) from error


def _require_classes(num_labels: int) -> None:
    require_whole("task.num_labels", num_labels, 1)
    require(num_labels > 1, "task.num_labels", num_labels, "from 2; the task's metrics are of classes")


def accuracy(num_labels: int) -> Metric:
    """Makes the accuracy metric: the share of rows that are classified correctly."""
    _require_classes(num_labels)
    return MulticlassAccuracy(num_labels, average="micro")


def f1(num_labels: int) -> Metric:
    """Makes the F1 metric: F1 of the second of two classes, as in GLUE; macro F1 for more classes."""
    _require_classes(num_labels)
    if num_labels == 2:
        return BinaryF1Score()
    log.info("task.num_labels=%d: f1 is the mean over the classes of each one's F1 (macro F1)", num_labels)
    return macro_f1(num_labels)


def macro_f1(num_labels: int) -> Metric:
    """Makes the macro F1 metric: the mean of the classes' F1."""
    _require_classes(num_labels)
    return MulticlassF1Score(num_labels, average="macro")


class Matthews(MulticlassConfusionMatrix):
    """Matthews' correlation coefficient (R_k for several classes); 0 if all labels or predictions are of one class."""

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
