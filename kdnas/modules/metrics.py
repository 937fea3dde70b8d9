"""The metrics of a task on its held-out splits, and correlations for GLUE with a value for every outcome.

They are 0 where there is no correlation to speak of. That is scikit-learn's answer for Matthews' coefficient; SciPy
answers NaN, which no choice of a best epoch can use. torchmetrics gives a large positive or negative number for a
classifier that knows one class only, NaN for a regressor that knows one value only, and a rank correlation near 1 for
one that gives NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection, PearsonCorrCoef, SpearmanCorrCoef, SumMetric
from torchmetrics.classification import BinaryConfusionMatrix
from torchmetrics.utilities.data import dim_zero_cat


class SplitMetrics(nn.Module):
    """The same metrics on each held-out split.

    Args:
        metrics: torchmetrics objects by name, of predicted classes (or values) and labels.
        also: names of the splits after the first; their metrics are called `<metric>_<split>`.
    """

    def __init__(self, metrics: Mapping[str, Any], also: Iterable[str] | None = None) -> None:
        super().__init__()
        first = MetricCollection(dict(metrics), compute_groups=False)
        self.of_splits = [first.clone(), *(first.clone(postfix=f"_{name}") for name in also or ())]
        self.held = nn.ModuleList(self.of_splits)  # where the devices are
        self.broken = SumMetric()

    @property
    def names(self) -> list[str]:
        return [str(name) for metrics in self.of_splits for name in metrics]

    def reset(self) -> None:
        self.broken.reset()
        for metrics in self.of_splits:
            metrics.reset()

    def update(self, split: int, logits: Tensor, labels: Tensor) -> None:
        """Adds a classifier's logits, (rows, classes); with one class, they are a regression's values."""
        predicted = logits.float().squeeze(-1) if logits.shape[-1] == 1 else logits.argmax(-1)
        self.broken.update((~logits.isfinite()).sum())  # the largest of several NaN is a class like any other
        self.of_splits[split].update(predicted, labels)

    @property
    def finite(self) -> bool:
        """Whether all logits since the last reset were numbers that can be reckoned with."""
        return not self.broken.update_called or not bool(self.broken.compute())

    def compute(self) -> dict[str, float]:
        return {name: float(value) for metrics in self.of_splits for name, value in metrics.compute().items()}


class Matthews(BinaryConfusionMatrix):
    """Matthews' correlation coefficient of two classes; 0 if all labels or all predictions are of one class."""

    def compute(self) -> Tensor:
        (tn, fp), (fn, tp) = super().compute().float()
        margins = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        return torch.where(margins > 0, (tp * tn - fp * fn) / margins.sqrt(), 0.0)


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
