"""Masked language modelling: the labels are the tokens that were masked."""

from types import MappingProxyType

from torch import Tensor

from kdnas.models.heads import MaskedLM
from kdnas.tasks.base import Task
from kdnas.tasks.classification import cross_entropy


class MaskedTokens(Task):
    """The masked tokens of a text (Devlin et al., 2019, section 3.1). It has no metric beside the loss."""

    head = MaskedLM()
    metrics = MappingProxyType({})

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean cross entropy of logits, (masked tokens, vocabulary), for token ids.

        Without masked tokens it is 0, with gradients of 0.
        """
        return cross_entropy(logits, labels) if len(labels) else logits.sum()  # of no logits: keeps the graph

    def decode(self, logits: Tensor) -> Tensor:
        return logits.argmax(-1)
