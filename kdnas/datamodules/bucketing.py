"""Batches of rows of like length, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

WINDOW = 50
"""Batches that are sorted together: large enough for even lengths, small enough to leave the order random."""


class BucketSampler(Sampler[list[int]]):
    """A batch sampler: shuffles, sorts by length within windows of 50 batches, and shuffles the batches.

    Several processes that train together make the same batches, and each takes its share of every one: `rank` of
    `world`. Where a training batch has fewer rows than there are processes, each takes all of them, which makes the
    same step. No other row is given twice, and no held-out one.

    Args:
        lengths: tokens of each row.
        batch_size: rows of a batch, all shares together (the last one may be smaller); at least `world`.
        batch_tokens: of a batch on the average, in place of `batch_size`; at least twice those of the longest row.
        shuffle: for training; False gives the rows sorted by length, the same every time.
        seed: with the epoch, decides the order.
        epoch: tells the current one. Asked, not told: Lightning does not say where a resumed run goes on.
        rank, world: which share, and of how many.
    """

    def __init__(
        self,
        lengths: Sequence[int] | Tensor,
        batch_size: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        epoch: Callable[[], int] = lambda: 0,
        rank: int = 0,
        world: int = 1,
        batch_tokens: int | None = None,
    ) -> None:
        self.lengths = torch.as_tensor(lengths)
        self.batch_size = batch_size
        # Every epoch has as many: Lightning counts them once.
        self.batches = max(1, int(self.lengths.sum()) // batch_tokens) if batch_tokens else None
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = epoch
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        if self.batches:
            return self.batches if self.shuffle else sum(len(batch) > self.rank for batch in self._batches())
        # Of a last batch with too few held-out rows for all, the last processes have none.
        rows = len(self.lengths) - (0 if self.shuffle else self.rank)
        return -(-rows // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        return iter([share for batch in self._batches() if (share := self._share(batch))])

    def _share(self, batch: list[int]) -> list[int]:
        return batch if self.shuffle and len(batch) < self.world else batch[self.rank :: self.world]

    def _batches(self) -> list[list[int]]:
        if not self.shuffle:
            return self._cut(self.lengths.argsort(stable=True), self.batches)
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch())) % 2**63)
        order = torch.randperm(len(self.lengths), generator=generator)
        batches: list[list[int]] = []
        for window, count in self._windows(order):
            batches += self._cut(window[self.lengths[window].argsort(stable=True)], count)
        return [batches[i] for i in torch.randperm(len(batches), generator=generator)]

    def _windows(self, order: Tensor) -> list[tuple[Tensor, int | None]]:
        """The rows to sort together and, where it is fixed, the number of their batches."""
        if not self.batches:
            return [(window, None) for window in order.split(WINDOW * self.batch_size)]
        windows = -(-self.batches // WINDOW)
        counts = [len(part) for part in torch.arange(self.batches).tensor_split(windows)]
        return list(zip(order.tensor_split(windows), counts, strict=True))

    def _cut(self, rows: Tensor, count: int | None) -> list[list[int]]:
        if not count:
            return [batch.tolist() for batch in rows.split(self.batch_size)]
        # By the middle of each row: as none is longer than a batch, each batch has one.
        lengths = self.lengths[rows]
        middles = lengths.cumsum(0) - lengths / 2
        numbers = (middles * count / lengths.sum()).long().clamp(max=count - 1)
        return [batch.tolist() for batch in rows.split(numbers.bincount(minlength=count).tolist())]
