"""A teacher's states and importances on a sample of text, computed once for all students of a process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedModel

from kdnas.models.families import family_of
from kdnas.models.initialisation.fitting import principal_directions
from kdnas.models.initialisation.layers import Layer, Sample, layers_of


@dataclass
class Total:
    """The sum, over all batches so far, of a function of a batch's values."""

    function: Callable[[Tensor], Tensor]
    value: Tensor = field(default_factory=lambda: torch.zeros(()))

    def __call__(self, values: Tensor) -> None:
        self.value = self.value + self.function(values)


@dataclass(frozen=True)
class Taught:
    """A teacher's encoder, and what its layers give on a sample of text. Tensors are of real tokens, (tokens, width).

    Attributes:
        embedded: the output of the embeddings.
        attention_sums, output_sums: for each layer, the inputs of its two layer norms.
        heads, neurons: for each layer, how much each attention head and each neuron of the feed-forward network adds
            to the hidden states: the mean square of its part of the output, (heads,) and (neurons,).
    """

    encoder: PreTrainedModel
    layers: list[Layer]
    sample: Sample
    embedded: Tensor
    attention_sums: list[Tensor]
    output_sums: list[Tensor]
    heads: list[Tensor]
    neurons: list[Tensor]

    @classmethod
    @torch.no_grad()
    def of(cls, encoder: PreTrainedModel, batches: Sequence[BatchEncoding]) -> Taught:
        """Runs a teacher on a sample.

        Raises:
            AttributeError: its family's layers are not as BERT's.
        """
        layers, sample = layers_of(encoder), Sample(batches)
        size = family_of(encoder.config).head_size(encoder.config)
        norms = [norm for one in layers for norm in (one.attention_norm, one.output_norm)]
        # Sums alone: inputs of all output matrices at once would take several times the memory of the rest.
        products = {one.attention_output: Total(lambda v: _products(v.unflatten(1, (-1, size)))) for one in layers}
        squares = {one.output: Total(lambda v: v.square().sum(0)) for one in layers}
        inputs = sample.inputs(encoder, [layers[0].whole, *norms], {**products, **squares})
        columns = {matrix: matrix.weight.unflatten(1, (-1, size)) for matrix in products}
        return cls(
            encoder,
            layers,
            sample,
            inputs[layers[0].whole],
            [inputs[one.attention_norm] for one in layers],
            [inputs[one.output_norm] for one in layers],
            # |W V^T|^2 = <V^T V, W^T W>, in the mean over tokens and the hidden size
            [
                (total.value * _products(columns[matrix])).sum((1, 2)) / len(matrix.weight) / sample.tokens
                for matrix, total in products.items()
            ],
            [total.value * matrix.weight.square().sum(0) / sample.tokens for matrix, total in squares.items()],
        )

    def states(self, layer: int) -> Tensor:
        """Returns the hidden states of a layer; the first is 1, and 0 are the embeddings' output."""
        return self.layers[layer - 1].output_norm(self.output_sums[layer - 1]) if layer else self.embedded

    def attended(self, layer: int) -> Tensor:
        """Returns what a layer's feed-forward network takes."""
        return self.layers[layer - 1].attention_norm(self.attention_sums[layer - 1])

    @cached_property
    def directions(self) -> Tensor:
        """The principal directions of the hidden states of all layers, (width, width).

        Each layer counts alike: its covariance is divided by its mean variance.
        """
        total = torch.zeros(())
        for layer in range(len(self.layers) + 1):
            covariance = torch.cov(self.states(layer).T)
            total = total + covariance / covariance.diagonal().mean()
        return principal_directions(total, len(total))


def _products(values: Tensor) -> Tensor:
    """Returns V^T V of each head's values V, (rows, heads, size), as (heads, size, size)."""
    return torch.einsum("nha,nhb->hab", values, values)
