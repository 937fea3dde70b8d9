"""Layers of a teacher, cut down to a student's size and fitted to what the teacher gives on a sample of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdnas.models.initialisation.fitting import LeastSquares, fit_norm
from kdnas.models.initialisation.heads import head_maps, relation_map
from kdnas.models.initialisation.layers import Layer, Steps
from kdnas.models.initialisation.sample import Taught


@dataclass(frozen=True)
class Cut:
    """Fits a student's layers to a teacher's.

    The student's hidden states approximate the teacher's on a basis. Of the teacher's heads and neurons those that add
    the most to the hidden states are kept, in their order. Every linear map is fitted by least squares, from what the
    student computes on the sample to what the teacher does there.

    Attributes:
        basis: (teacher's hidden size, student's hidden size).
        heads: for each teacher layer, the heads to keep, in order.
        head_size: the student's.
    """

    taught: Taught
    basis: Tensor
    heads: Sequence[Tensor]
    head_size: int

    def fit(self, own: Layer, number: int, steps: Steps, relations: int = 0) -> None:
        """Fits the student's next layer, `own`, to a teacher layer, of which the first is 1.

        A layer whose attention relations are matched has the number of its `relations` heads; others have 0.
        """
        theirs = self.taught.layers[number - 1]
        if relations:
            self._fit_relations(own, theirs, number, steps, relations)
        else:
            self._fit_heads(own, theirs, number, steps)
        self._fit_sum(
            own.attention_output,
            own.attention_norm,
            steps.tokens,
            steps.into(own.attention_output, own),
            self.taught.attention_sums[number - 1] @ self.basis,
            self.taught.attended(number),
        )
        attended = steps.into(own.intermediate, own)
        kept = self._fit_neurons(own, theirs, number, attended)
        own.output.weight[:, : len(kept)] = self.basis.T @ theirs.output.weight[:, kept]
        self._fit_sum(
            own.output,
            own.output_norm,
            attended,
            steps.into(own.output, own),
            self.taught.output_sums[number - 1] @ self.basis,
            self.taught.states(number),
        )
        steps.advance(own)

    def _fit_heads(self, own: Layer, theirs: Layer, number: int, steps: Steps) -> None:
        """Fits queries, keys and values, and begins the output matrix with the teacher's columns."""
        states, squares = self.taught.states(number - 1), LeastSquares(steps.tokens)
        size = theirs.query.out_features // len(self.taught.heads[number - 1])
        own.attention_output.weight.zero_()
        for place, head in enumerate(self.heads[number - 1].tolist()):
            rows = slice(head * size, (head + 1) * size)
            linears = (theirs.query, theirs.key, theirs.value)
            given = [functional.linear(states, one.weight[rows], one.bias[rows]) for one in linears]
            columns = theirs.attention_output.weight[:, rows]
            maps = head_maps(given[0], given[1], given[2], columns, self.head_size)
            mine = slice(place * self.head_size, place * self.head_size + maps.value.shape[1])
            mapped = zip((own.query, own.key, own.value), linears, given, maps.inputs, strict=True)
            for linear, teacher, values, to in mapped:
                linear.weight[mine] = to.T @ teacher.weight[rows] @ self.basis
                squares.fit(linear.weight[mine], linear.bias[mine], values @ to)
            own.attention_output.weight[:, mine] = self.basis.T @ columns @ maps.back

    def _fit_relations(self, own: Layer, theirs: Layer, number: int, steps: Steps, count: int) -> None:
        """Fits queries, keys and values to the teacher's relations, and begins the output matrix with its columns."""
        states, squares = self.taught.states(number - 1), LeastSquares(steps.tokens)
        linears = (theirs.query, theirs.key, theirs.value)
        given = [one(states) for one in linears]
        to = relation_map(given, count, own.query.out_features // count)
        for linear, teacher, values in zip((own.query, own.key, own.value), linears, given, strict=True):
            linear.weight.copy_(to.T @ teacher.weight @ self.basis)
            squares.fit(linear.weight, linear.bias, values @ to)
        own.attention_output.weight.copy_(self.basis.T @ theirs.attention_output.weight @ torch.linalg.pinv(to).T)

    def _fit_neurons(self, own: Layer, theirs: Layer, number: int, inputs: Tensor) -> Tensor:
        """Fits the feed-forward network's first matrix to the teacher's neurons that it returns."""
        importance = self.taught.neurons[number - 1]
        kept = leading(importance, min(len(importance), own.intermediate.out_features))
        weight, bias = own.intermediate.weight[: len(kept)], own.intermediate.bias[: len(kept)]
        weight.copy_(theirs.intermediate.weight[kept] @ self.basis)
        targets = functional.linear(
            self.taught.attended(number), theirs.intermediate.weight[kept], theirs.intermediate.bias[kept]
        )
        LeastSquares(inputs).fit(weight, bias, targets)
        return kept

    def _fit_sum(
        self, output: nn.Linear, norm: nn.LayerNorm, residual: Tensor, inputs: Tensor, target: Tensor, states: Tensor
    ) -> None:
        """Fits an output matrix, so that its output and the residual add up to a target, and the norm after it."""
        LeastSquares(inputs).fit(output.weight, output.bias, target - residual)
        fit_norm(norm, residual + output(inputs), states @ self.basis)


def leading(importance: Tensor, count: int) -> Tensor:
    """Returns the indices of the `count` largest values, in ascending order."""
    return importance.argsort(descending=True, stable=True)[:count].sort().values
