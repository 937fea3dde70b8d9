"""Packed batches: attention on the concatenated real tokens of a batch, without padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, BatchEncoding, PreTrainedConfig

from kdnas.models.features import Kind

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
PACKED = "kdnas_packed"
"""The name of the attention of packed rows in transformers' configs."""
SHORT = 256
"""The longest rows for which plain matrix products train faster on a CPU than fused attention: 10 times in bf16."""


@dataclass(frozen=True)
class Layout:
    """The positions of a batch's tokens, padded and packed.

    Attributes:
        runs: (rows, length) of each run of adjacent rows of equal length, on the host.
        real: the indices of the packed tokens in the flattened padded batch, (tokens,).
        first: the indices of the rows' first tokens among the packed ones, (rows,).
        positions: the positions of the packed tokens in their rows, (tokens,).
    """

    runs: Sequence[tuple[int, int]]
    real: Tensor
    first: Tensor
    positions: Tensor

    @classmethod
    def of(cls, batch: BatchEncoding) -> Layout:
        """Computes the layout of a batch, and stores it there for the teacher and every student.

        A batch that has its `lengths` as a list saves a device synchronization.
        """
        if "layout" not in batch:
            mask = batch["attention_mask"]
            lengths = batch["lengths"] if "lengths" in batch else mask.sum(1).tolist()
            runs = [(len(list(run)), length) for length, run in groupby(lengths)]
            tokens, width = sum(lengths), mask.shape[1]
            counts = mask.sum(1)  # on the device, without a synchronization
            first = counts.cumsum(0) - counts
            row = torch.repeat_interleave(counts, output_size=tokens)
            positions = torch.arange(tokens, device=mask.device) - first[row]
            # Tokenizers may pad on the left.
            begin = mask.argmax(1)
            batch["layout"] = cls(runs, row * width + begin[row] + positions, first, positions)
        return batch["layout"]

    def masked(self, batch: BatchEncoding) -> Tensor:
        """Returns the indices of the tokens to predict among the packed ones, (masked tokens,)."""
        return (batch["labels"] != -100).flatten()[self.real].nonzero().squeeze(1)


@dataclass(frozen=True)
class Attention:
    """The packed attention of a pass; `inputs` are each layer's queries, keys and values, (1, heads, tokens, size)."""

    runs: Sequence[tuple[int, int]]
    inputs: list[dict[Kind, Tensor]]

    def input(self, kind: Kind, layer: int) -> Tensor:
        """Returns a layer's queries, keys or values, heads side by side, (tokens, heads * head size)."""
        return self.inputs[layer - 1][kind][0].transpose(0, 1).flatten(1)


_current: ContextVar[Attention] = ContextVar("attention")
"""The attention of the current forward pass. Not an argument, which would recompile a compiled model for each value."""


@torch.compiler.disable
def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each of the packed rows: from (1, heads, tokens, width) to (1, tokens, heads, width).

    Rows of equal length are adjacent in a batch, so there are few runs, and none needs a mask.

    Raises:
        NotImplementedError: tokens attend to a window of the row.
    """
    if sliding_window is not None:
        raise NotImplementedError("packed attention is over whole rows")
    _current.get().inputs.append({Kind.QUERY: query, Kind.KEY: key, Kind.VALUE: value})
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    runs = _current.get().runs
    plain = query.device.type == "cpu" and query.requires_grad
    sizes = [rows * length for rows, length in runs]
    parts = []
    for (rows, length), *run in zip(runs, *(t[0].split(sizes, dim=1) for t in (query, key, value)), strict=True):
        q, k, v = (t.unflatten(1, (rows, length)).transpose(0, 1) for t in run)  # (rows, heads, length, width)
        if plain and length <= SHORT:
            weights = functional.softmax((q * scale) @ k.transpose(-1, -2), dim=-1, dtype=torch.float32)
            attended = functional.dropout(weights, dropout).to(v.dtype) @ v
        else:
            attended = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale)
        parts.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)[None], None


AttentionInterface.register(PACKED, packed_attention)


@contextmanager
def packed(config: PreTrainedConfig, layout: Layout) -> Iterator[Attention]:
    """Switches a model to packed attention within the block; afterwards its config can be exported and measured."""
    attention = Attention(layout.runs, [])
    usual, before = config._attn_implementation, _current.set(attention)
    config._attn_implementation = PACKED
    try:
        yield attention
    finally:
        config._attn_implementation = usual
        _current.reset(before)
