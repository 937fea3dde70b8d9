"""Batches of rows of like length, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

WINDOW = 50
"""Batches that are sorted together: large enough for even lengths, small enough to leave the order random."""


class BucketSampler(Sampler[list[int]]):
    """A batch sampler: shuffles, sorts by length within windows of 50 batches, and shuffles the batches.

    Args:
        lengths: tokens of each row.
        batch_size: rows of a batch (the last one may be smaller).
        shuffle: False gives the rows sorted by length, the same every time.
        seed: with the epoch, decides the order.
        epoch: tells the current one. Asked, not told: Lightning does not say where a resumed run goes on.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        epoch: Callable[[], int] = lambda: 0,
    ) -> None:
        self.lengths = torch.as_tensor(lengths)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        if not self.shuffle:
            return iter(self._cut(self.lengths.argsort(stable=True)))
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch())) % 2**63)
        order = torch.randperm(len(self.lengths), generator=generator)
        batches: list[list[int]] = []
        for window in order.split(WINDOW * self.batch_size):
            batches += self._cut(window[self.lengths[window].argsort(stable=True)])
        return iter([batches[i] for i in torch.randperm(len(batches), generator=generator)])

    def _cut(self, rows: torch.Tensor) -> list[list[int]]:
        return [batch.tolist() for batch in rows.split(self.batch_size)]
