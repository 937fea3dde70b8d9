"""The metrics of a task on each of its held-out splits."""

from collections.abc import Iterable

from torch import Tensor, nn
from torchmetrics import MetricCollection, SumMetric

from kdnas.tasks import LabelledTask


class SplitMetrics(nn.Module):
    """The metrics of a task (if any) on each held-out split; of further splits (`also`), `<metric>_<split>`."""

    def __init__(self, task: LabelledTask | None, also: Iterable[str] | None = None) -> None:
        super().__init__()
        self.task = task
        order = list(task.metrics) if task else []
        first = MetricCollection(dict(task.metrics) if task else {}, compute_groups=False)
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
        """Updates the metrics of a split with logits, (rows, num_labels), and labels."""
        assert self.task is not None
        self.broken.update((~logits.isfinite()).sum())  # argmax hides NaN
        self.of_splits[split].update(self.task.decode(logits), labels)

    @property
    def finite(self) -> bool:
        """Whether all logits since the last reset were finite."""
        return not self.broken.update_called or not bool(self.broken.compute())

    def compute(self) -> dict[str, float]:
        values = {name: float(value) for metrics in self.of_splits for name, value in metrics.compute().items()}
        return {name: values[name] for name in self.names}
