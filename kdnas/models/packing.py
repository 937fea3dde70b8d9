"""Packed batches: the real tokens of a batch without padding, one row after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from transformers import BatchEncoding

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


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

    def means(self, states: Tensor) -> Tensor:
        """Returns the mean of each row's states, (rows, width), from those of the packed tokens, (tokens, width)."""
        parts = states.split([rows * length for rows, length in self.runs])
        split = zip(parts, self.runs, strict=True)
        return torch.cat([part.unflatten(0, run).mean(1) for part, run in split])
