"""Regression: the label is a number."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import ClassLabel, Dataset, Value
from torch import Tensor
from torch.nn import functional

from kdnas.base.errors import is_number, require
from kdnas.models.heads import Classifier
from kdnas.tasks.base import LabelledTask
from kdnas.tasks.labels import LabelError, Labels, cells, content, listed, or_as_many


class Regression(LabelledTask):
    """A number a row, as STS-B's similarity of two sentences."""

    unfit_metrics = "torchmetrics.classification"

    def __init__(self, num_labels: int = 1, labels: None = None, **settings: Any) -> None:
        require(num_labels == 1, "num_labels", num_labels, "1; a regression predicts one number")
        require(labels is None, "labels", labels, "null; a regression has no classes")
        self.head = Classifier(1, "regression")
        super().__init__(num_labels, **settings)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean squared error of logits, (rows, 1), over rows."""
        return functional.mse_loss(logits.float().squeeze(-1), labels.float())

    def decode(self, logits: Tensor) -> Tensor:
        return logits.float().squeeze(-1)

    def constants(self, labels: Tensor, names: Sequence[str] | None) -> dict[str, Tensor]:
        return {"always predicting the mean": labels.double().mean()[None]}

    def example(self) -> tuple[Tensor, Tensor]:
        return torch.tensor([0.5, 1.5]), torch.tensor([0.5, 1.5])

    def read_labels(self, splits: Mapping[str, Dataset], column: str) -> Labels:
        for rows in splits.values():
            Numbers().of_further(rows, column)
        return Numbers()


class Numbers(Labels):
    def encode(self, rows: Dataset, column: str) -> Dataset:
        return rows if "float" in content(rows, column) else rows.cast_column(column, Value("float64"))

    def of_further(self, rows: Dataset, column: str) -> Labels:
        feature = rows.features[column]
        if isinstance(feature, ClassLabel):
            allowed = or_as_many("numbers", feature.num_classes)
            raise LabelError.of(column, f"the classes {listed(feature.names)}", allowed)
        for label in cells(rows, column):
            if not is_number(label):
                raise LabelError.of(column, f"{content(rows, column)}, as {label}", "finite numbers")
        return self
