"""Attention heads of another size: the best ones of low rank, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdnas.models.initialisation.fitting import principal_directions


@dataclass(frozen=True)
class HeadMaps:
    """Linear maps from a teacher's head to a student's, (teacher's head size, at most the student's head size) each.

    `query`, `key` and `value` take what the teacher's head has; `back` takes the student's values to the teacher's.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    back: Tensor

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.query, self.key, self.value


def head_maps(query: Tensor, key: Tensor, value: Tensor, output: Tensor, size: int) -> HeadMaps:
    """Returns the maps to a head of another size, from what the teacher's head gives on a sample.

    Scores q k^T / sqrt(head size) and outputs v W^T of the student's head are the best approximations, in the mean over
    pairs of tokens and over tokens, that its size allows. A larger head has the teacher's in its first features.

    Args:
        query, key, value: of one head, (tokens, teacher's head size).
        output: the columns W of the output matrix that belong to the head, (hidden size, teacher's head size).
        size: the student's head size.
    """
    own = query.shape[1]
    scale = (size / own) ** 0.25  # on both sides, for the square roots of the two sizes
    if size >= own:
        same = torch.eye(own)
        return HeadMaps(scale * same, scale * same, same, same)
    to_query, from_query = _roots(query)
    to_key, from_key = _roots(key)
    left, strength, right = torch.linalg.svd(to_query @ to_key)
    root = scale * strength[:size].sqrt()
    to_value, from_value = _roots(value)
    directions = torch.linalg.svd(to_value @ output.double().T)[0][:, :size]
    maps = (from_query @ left[:, :size] * root, from_key @ right[:size].T * root)
    return HeadMaps(*(each.float() for each in (*maps, from_value @ directions, to_value @ directions)))


def relation_map(values: Sequence[Tensor], count: int, size: int) -> Tensor:
    """Returns one map to relation heads of another size, for queries, keys and values alike: (width, count * size).

    Relation heads are the values split into `count` parts. The map takes each part to its leading principal directions,
    so that the products of any two of `values` stay as they are, as nearly as one such map can keep all of them.

    Args:
        values: of all heads side by side, (tokens, width) each.
        count, size: the number of relation heads, which divides the width, and their new size, no larger.
    """
    own = values[0].shape[1] // count
    if size == own:
        return torch.eye(count * size)
    parts = [each.unflatten(1, (count, own)).unbind(1) for each in values]
    alike = [torch.cat([one / one.square().mean().sqrt() for one in part]) for part in zip(*parts, strict=True)]
    return (size / own) ** 0.25 * torch.block_diag(*(principal_directions(each.T @ each, size) for each in alike))


def _roots(values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the square root of the matrix of second moments of (tokens, width), and the root's pseudo-inverse."""
    values = values.double()
    moments, vectors = torch.linalg.eigh(values.T @ values / len(values))
    roots = moments.clamp(min=0).sqrt()
    inverse = torch.where(roots > 1e-4 * roots.max(), 1 / roots.clamp(min=1e-30), torch.zeros_like(roots))
    return vectors * roots @ vectors.T, vectors * inverse @ vectors.T
