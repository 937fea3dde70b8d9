"""The interface of tasks. A new task is a subclass and a config in `conf/task` that names it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from torch import Tensor

from kdnas.base.errors import ConfigError, reason, require, require_whole
from kdnas.models.features import LOGITS, Feature
from kdnas.models.heads import Classifier, Head
from kdnas.tasks.labels import Labels
from kdnas.tasks.metrics import deciding_first


class Task(ABC):
    """The subject of a model's predictions.

    Attributes:
        head: the kind of model that the task needs.
        feature: the logits of such a model that the task takes, as a feature: a row's, or those of masked tokens.
        metrics: torchmetrics objects by name, for predictions and labels; the deciding one first.
    """

    head: Head
    feature: Feature = LOGITS
    metrics: Mapping[str, Any]

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean loss over the labels, a scalar."""

    @abstractmethod
    def decode(self, logits: Tensor) -> Tensor:
        """Returns the predictions that logits stand for, as the metrics take them."""


class LabelledTask(Task):
    """A task whose labels are a column of a dataset.

    Args:
        num_labels: the number of logits a row.
        metrics: torchmetrics objects by name.
        metric: the name of the metric that picks the best epoch, is rewarded, and is shown first; None for the first.
        columns: the dataset's text columns: one, or two that make a pair.
        validation: the held-out split.
        also: further held-out splits, by the suffix of their metrics' names.
        path, subset: the dataset's hub id or folder, and its config's name.

    Raises:
        ConfigError: a number of labels below 1, no metric, a metric that does not fit the task, or a deciding metric
            of which less is better.
    """

    head: Classifier
    unfit_metrics = ""
    """The package of torchmetrics whose metrics do not fit the task's predictions."""

    def __init__(
        self,
        num_labels: int,
        metrics: Mapping[str, Any],
        metric: str | None = None,
        name: str = "",
        columns: Sequence[str] = (),
        validation: str = "validation",
        also: Mapping[str, str] | None = None,
        path: str | None = None,
        subset: str | None = None,
    ) -> None:
        require_whole("num_labels", num_labels, 1)
        self.num_labels, self.name, self.columns = num_labels, name, columns
        self.validation, self.also, self.path, self.subset = validation, also, path, subset
        self.metrics = deciding_first(metrics, metric)
        for key, each in self.metrics.items():
            self._check_metric(key, each)

    @abstractmethod
    def read_labels(self, splits: Mapping[str, Dataset], column: str) -> Labels:
        """Finds out how the labels of splits (the first is for training) are encoded; a `LabelError` refuses others."""

    @abstractmethod
    def example(self) -> tuple[Tensor, Tensor]:
        """Returns predictions and labels of a few rows, to try metrics on."""

    @abstractmethod
    def constants(self, labels: Tensor, names: Sequence[str] | None) -> dict[str, Tensor]:
        """Returns the logits, (num_labels,), of models that predict the same for every row, by a description.

        The best of them on the held-out labels is chance. The names are those of the data's classes, if they have any.
        """

    def fitting_order(self, predicted: Tensor, labels: Tensor) -> list[int] | None:
        """Returns, for each predicted class id, the one that fits held-out labels far better; None if there is none."""
        return None

    def _check_metric(self, key: str, metric: Any) -> None:
        origins = [base.__module__ for base in type(metric).__mro__]
        unfit = bool(self.unfit_metrics) and any(origin.startswith(self.unfit_metrics) for origin in origins)
        allowed = f"a metric for {type(self).__name__}, none of {self.unfit_metrics}"
        require(not unfit, f"metrics.{key}", type(metric).__name__, allowed)
        try:
            metric.clone().update(*self.example())
        except Exception as error:  # torchmetrics can raise anything
            message = f": does not go with num_labels={self.num_labels} ({reason(error)})"
            raise ConfigError.of(f"metrics.{key}", message) from error
