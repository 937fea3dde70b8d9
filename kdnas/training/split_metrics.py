"""The metrics of a task on each of its held-out splits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torchmetrics import MetricCollection, SumMetric


class SplitMetrics(nn.Module):
    """The same metrics on each held-out split.

    Args:
        metrics: torchmetrics objects by name, for predicted classes (or values) and labels; the deciding one first.
        also: the names of the splits after the first; their metrics are called `<metric>_<split>`.
    """

    def __init__(self, metrics: Mapping[str, Any], also: Iterable[str] | None = None) -> None:
        super().__init__()
        order = list(metrics)
        first = MetricCollection(dict(metrics), compute_groups=False)
        self.of_splits = [first.clone(), *(first.clone(postfix=f"_{name}") for name in also or ())]
        self.held = nn.ModuleList(self.of_splits)  # registers them as submodules
        self.broken = SumMetric()

        # A MetricCollection sorts its metrics by name; here the deciding one comes first.
        self.names = [f"{name}{metrics.postfix or ''}" for metrics in self.of_splits for name in order]

    def reset(self) -> None:
        self.broken.reset()
        for metrics in self.of_splits:
            metrics.reset()

    def update(self, split: int, logits: Tensor, labels: Tensor) -> None:
        """Updates the metrics of a split with logits, (rows, classes), or with values of a regression, (rows, 1)."""
        predicted = logits.float().squeeze(-1) if logits.shape[-1] == 1 else logits.argmax(-1)
        self.broken.update((~logits.isfinite()).sum())  # argmax hides NaN
        self.of_splits[split].update(predicted, labels)

    @property
    def finite(self) -> bool:
        """Whether all logits since the last reset were finite."""
        return not self.broken.update_called or not bool(self.broken.compute())

    def compute(self) -> dict[str, float]:
        values = {name: float(value) for metrics in self.of_splits for name, value in metrics.compute().items()}
        return {name: values[name] for name in self.names}
