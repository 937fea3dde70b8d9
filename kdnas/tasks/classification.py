"""Classification: the label is one of several classes of a row, or the token that was masked."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import one_hot

from kdnas.base.errors import require_whole
from kdnas.models.features import MASKED_LOGITS
from kdnas.models.heads import Classifier, MaskedLM
from kdnas.tasks.base import LabelledTask, Task
from kdnas.tasks.class_ids import check_names, classes_of
from kdnas.tasks.labels import Labels

EVIDENT = 3
"""Standard deviations by which another order of the classes must fit the labels better to be evident."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean over rows of -log softmax(logits)[label]: KD-NAS v1, Eq. 3; logits are (rows, classes)."""
    return functional.cross_entropy(logits.float(), labels)


class Classification(LabelledTask):
    """One of several classes a row.

    Args:
        labels: the names of the classes in the order of their ids, where the data has numbers; the order of the
            classes, where the data has names; None for the dataset's own names and order, or else sorted names.
    """

    unfit_metrics = "torchmetrics.regression"

    def __init__(self, num_labels: int, labels: Sequence[str] | None = None, **settings: Any) -> None:
        require_whole("num_labels", num_labels, 2)
        self.labels = check_names(labels, num_labels)
        self.head = Classifier(num_labels)
        super().__init__(num_labels, **settings)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels)

    def decode(self, logits: Tensor) -> Tensor:
        return logits.argmax(-1)

    def constants(self, labels: Tensor, names: Sequence[str] | None) -> dict[str, Tensor]:
        names = names or [f"class {i}" for i in range(self.num_labels)]
        return {f"always predicting {name}": one_hot(torch.tensor(i), self.num_labels) for i, name in enumerate(names)}

    def fitting_order(self, predicted: Tensor, labels: Tensor) -> list[int] | None:
        count = self.num_labels
        fitting = (one_hot(predicted, count).T @ one_hot(labels, count)).argmax(1)  # the most frequent label of each
        if sorted(fitting.tolist()) != list(range(count)) or len(predicted.unique()) < count:
            return None
        before, after = predicted == labels, fitting[predicted] == labels
        gained = int(after.sum() - before.sum())
        evident = gained > EVIDENT * int((after != before).sum()) ** 0.5  # a sign test
        return fitting.tolist() if evident else None

    def example(self) -> tuple[Tensor, Tensor]:
        return torch.arange(self.num_labels), torch.arange(self.num_labels)

    def read_labels(self, splits: Mapping[str, Dataset], column: str) -> Labels:
        return classes_of(splits, column, self.num_labels, self.labels)


class MaskedTokens(Task):
    """The masked tokens of a text (Devlin et al., 2019, section 3.1). It has no metric beside the loss."""

    head, feature = MaskedLM(), MASKED_LOGITS
    metrics = MappingProxyType({})

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean cross entropy of logits, (masked tokens, vocabulary), for token ids; 0 without tokens."""
        return cross_entropy(logits, labels) if len(labels) else logits.sum()  # of no logits: keeps the graph

    def decode(self, logits: Tensor) -> Tensor:
        return logits.argmax(-1)
