"""Embeddings of a teacher in a student's width: tables, layer norm and projection, on a basis of the hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kdnas.models.families import family_of
from kdnas.models.initialisation.fitting import fit_norm, principal_directions


@dataclass(frozen=True)
class Embeddings:
    """The modules below an encoder's first layer; None for those that its family does not have.

    Attributes:
        words, positions, types: the tables of tokens, absolute positions and token types.
        norm: the layer norm.
        projection: from embeddings of a size of their own to the hidden size.
        first_position: the index of a row's first token in the table of positions.
    """

    words: nn.Embedding
    positions: nn.Embedding | None
    types: nn.Embedding | None
    norm: nn.LayerNorm | None
    projection: nn.Linear | None
    first_position: int

    @classmethod
    def of(cls, encoder: PreTrainedModel) -> Embeddings:
        family = family_of(encoder.config)
        below = {
            name: module
            for path in family.embeddings
            for name, module in encoder.get_submodule(path).named_modules()
            if isinstance(module, nn.Embedding | nn.LayerNorm)
        }
        words: Any = encoder.get_input_embeddings()
        norm = next((module for module in below.values() if isinstance(module, nn.LayerNorm)), None)
        path = family.embeddings_projection
        projection: Any = dict(encoder.named_modules()).get(path) if path else None
        positions: Any = below.get("position_embeddings")
        types: Any = below.get("token_type_embeddings")
        return cls(words, positions, types, norm, projection, family.first_position(encoder.config))

    def directions(self) -> Tensor:
        """Returns the principal directions of the table of words in the hidden size, all of them: (width, width)."""
        moment = self.words.weight.T @ self.words.weight
        if self.projection is not None:
            moment = self.projection.weight @ moment @ self.projection.weight.T
        return principal_directions(moment, len(moment))

    def copies(self, teacher: Embeddings) -> bool:
        """Returns whether tables are taken as they are: before a projection, or where there is none in both."""
        own, theirs = self.words.embedding_dim, teacher.words.embedding_dim
        return own == theirs and (self.projection is not None or teacher.projection is None)

    def take(self, teacher: Embeddings, basis: Tensor) -> None:
        """Takes a teacher's embeddings, in place, on a basis of its hidden size: (teacher's width, student's width).

        Tables that have a projection to the hidden size keep the teacher's embedding size, and are copied. The padding
        token's row, which is never trained, is zero. What the teacher does not have stays as it is.
        """
        inner = torch.eye(self.words.embedding_dim) if self.copies(teacher) else teacher.onto(basis)
        _project(self.words, teacher.words.weight, inner)
        if self.positions is not None and teacher.positions is not None:
            positions = teacher.positions.weight[teacher.first_position :]
            _project(self.positions, positions, inner, self.first_position)
        if self.types is not None and teacher.types is not None:
            _project(self.types, teacher.types.weight, inner)
        if self.norm is not None and teacher.norm is not None:
            if teacher.norm_comes_first and self.projection is None:
                fit_norm(self.norm, self.first_sums(), teacher.projected_words() @ basis)
            else:
                _project_norm(self.norm, teacher.norm, inner if len(self.norm.weight) == len(inner.T) else basis)
        if self.projection is not None:
            _project_projection(self.projection, teacher.projection, basis)
        if self.words.padding_idx is not None:
            self.words.weight[self.words.padding_idx] = 0

    @property
    def norm_comes_first(self) -> bool:
        """Whether the layer norm comes before the projection, as in ELECTRA, and not after it, as in DeBERTa."""
        own, norm = self.words.embedding_dim, self.norm
        return self.projection is not None and norm is not None and len(norm.weight) == own

    def onto(self, basis: Tensor) -> Tensor:
        """Returns the map from tables to a basis of the hidden size; of a norm before the projection, the weights."""
        if self.projection is None:
            return basis
        weights = self.norm.weight[:, None] if self.norm is not None and self.norm_comes_first else 1
        return weights * (self.projection.weight.T @ basis)

    def first_sums(self) -> Tensor:
        """Returns what the tables give for each word as a row's first token, (vocabulary, width)."""
        sums = self.words.weight
        sums = sums if self.positions is None else sums + self.positions.weight[self.first_position]
        return sums if self.types is None else sums + self.types.weight[0]

    def projected_words(self) -> Tensor:
        """Returns the output of norm and projection, in this order, for each word as a row's first token."""
        assert self.norm is not None and self.projection is not None
        return self.projection(self.norm(self.first_sums()))


def _project(table: nn.Embedding, rows: Tensor, basis: Tensor, first: int = 0) -> None:
    """Writes projected rows into a table, from its row `first` on, as many as there are in both.

    Columns to which the basis leads nothing stay random: with zeros, what comes after them would never learn.
    """
    count, sizes = min(len(rows), table.num_embeddings - first), basis.norm(dim=0)
    own = table.weight[first : first + count]
    own.copy_(torch.where(sizes > 1e-4 * sizes.max(), rows[:count] @ basis, own))


def _project_projection(projection: nn.Linear, teacher: nn.Linear | None, basis: Tensor) -> None:
    """Gives a projection the teacher's, on a basis; a teacher without one has embeddings of its hidden size."""
    projection.weight.copy_((basis if teacher is None else teacher.weight.T @ basis).T)
    if projection.bias is not None:  # DeBERTa's has none
        projection.bias.zero_()
        if teacher is not None:
            projection.bias.copy_(teacher.bias @ basis)


def _project_norm(norm: nn.LayerNorm, teacher: nn.LayerNorm, basis: Tensor) -> None:
    """Gives a layer norm the diagonal of B^T diag(weight) B and B^T bias for the teacher's weight and bias."""
    norm.weight.copy_(((teacher.weight[:, None] * basis) * basis).sum(0))
    if norm.bias is not None and teacher.bias is not None:
        norm.bias.copy_(teacher.bias @ basis)
