"""The interface of loss terms."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import BatchEncoding, PreTrainedConfig

from kdnas.models.features import Feature, Features, Per
from kdnas.models.initialisation import MatchedRelations

NORMALIZATIONS = {"none": False, "variance": True}
"""Whether a loss is divided by what a student has that knows nothing of the teacher, by the setting's value."""


@dataclass(frozen=True)
class Mean:
    """A mean over some items of a batch, scalars both: means of several batches or devices can be combined."""

    value: Tensor
    count: Tensor

    @property
    def total(self) -> Tensor:
        return self.value * self.count


class LossTerm(nn.Module, ABC):
    """One loss of one student.

    A config makes a term from its settings, which the constructor checks; every student gets a copy, which `build`
    fits to its config.

    Attributes:
        student, teacher: the features that `forward` takes of each; `build` may set them.
        needs_labels: whether the rows must have labels.
        needs_masks: whether tokens must be masked.
        normalized_by: the teacher's features of held-out items that `calibrate` is computed from, before training.
        relations: the attention relations that the term matches, from which a student's first weights may be made.
    """

    student: frozenset[Feature] = frozenset()
    teacher: frozenset[Feature] = frozenset()
    needs_labels = False
    needs_masks = False
    normalized_by: frozenset[Feature] = frozenset()
    relations: MatchedRelations | None = None

    def build(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
        """Makes what the term learns, and sets its features, for a student's config and the teacher's.

        Raises:
            ConfigError: the term does not go with these models.
        """

    @abstractmethod
    def forward(self, student: Features, teacher: Features, batch: BatchEncoding) -> Mean:
        """Returns the loss of a batch."""

    def fit(self, student: Features, teacher: Features) -> None:
        """Fits what the term learns to hidden states on a sample of text, for a student that begins near its teacher.

        `student` and `teacher` have those of the term's features that are hidden states.
        """

    def reference(self, teacher: Features, batch: BatchEncoding) -> Mean:
        """Returns the loss of a student that knows nothing of the teacher, for a held-out batch; 1 where unused."""
        count = count_of(batch, Per.TOKEN)
        return Mean(torch.ones_like(count), count)

    def calibrate(self, variances: Mapping[Feature, float], reference: float) -> None:
        """Takes what the loss is divided by, over all held-out items.

        Args:
            variances: the variance of each feature of `normalized_by`, averaged over the width.
            reference: the mean of the method `reference`.
        """


def count_of(batch: BatchEncoding, per: Per) -> Tensor:
    """Returns the number of a batch's real tokens, masked tokens or rows (as many as first tokens), a scalar."""
    if per is Per.TOKEN:
        return batch["attention_mask"].sum()
    if per is Per.MASKED_TOKEN:
        return (batch["labels"] != -100).sum()
    return batch["attention_mask"].new_full((), len(batch["attention_mask"]))
