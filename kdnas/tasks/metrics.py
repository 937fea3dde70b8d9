"""The metrics of tasks, for any number of classes: 0 where undefined, as NaN could not choose the best epoch."""

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import BinaryF1Score, MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score
from torchmetrics.utilities.data import dim_zero_cat

from kdnas.base.errors import require, require_whole

log = logging.getLogger(__name__)


def deciding_first(metrics: Mapping[str, Any], deciding: str | None) -> dict[str, Metric]:
    """Returns a task's metrics, the deciding one (None for the first) first; more of it must be better."""
    require(isinstance(metrics, Mapping) and bool(metrics), "metrics", metrics, "at least one, by name")
    first = next(iter(metrics)) if deciding is None else deciding
    require(first in metrics, "metric", first, f"one of {', '.join(metrics)}")
    # Whatever compares models takes more for better.
    less = deciding is not None and metrics[first].higher_is_better is False
    require(not less, "metric", first, "a metric of which more is better")
    return {first: metrics[first], **metrics}


def accuracy(num_labels: int) -> Metric:
    """The share of rows that are classified correctly."""
    require_whole("num_labels", num_labels, 2)
    return MulticlassAccuracy(num_labels, average="micro")


def f1(num_labels: int) -> Metric:
    """F1 of the second of two classes, as in GLUE; macro F1 for more classes."""
    require_whole("num_labels", num_labels, 2)
    if num_labels == 2:
        return BinaryF1Score()
    _note_macro(num_labels)
    return macro_f1(num_labels)


@cache
def _note_macro(num_labels: int) -> None:
    log.info("task.num_labels=%d: f1 is the mean over the classes of each one's F1 (macro F1)", num_labels)


def macro_f1(num_labels: int) -> Metric:
    require_whole("num_labels", num_labels, 2)
    return MulticlassF1Score(num_labels, average="macro")


class Matthews(MulticlassConfusionMatrix):
    """Matthews' correlation coefficient (R_k for several classes); 0 if all labels or predictions are of one class."""

    def __init__(self, num_labels: int = 2) -> None:
        require_whole("num_labels", num_labels, 2)
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
