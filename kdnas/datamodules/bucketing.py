"""Batches of rows of similar length, so that little of a batch is padding."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

WINDOW = 50
"""Batches that are sorted together: large enough for even lengths, small enough to leave the order random."""


class BucketSampler(Sampler[list[int]]):
    """A batch sampler: shuffles, sorts by length within windows of 50 batches, and shuffles the batches.

    Several processes that train together make the same batches, and each takes its shard of every batch. Where a
    training batch has fewer rows than there are processes, each takes all of them, which makes the same step. No other
    row, and no held-out row, is given twice.

    Args:
        lengths: the number of tokens of each row.
        batch_size: rows a batch, over all processes (the last batch may be smaller); at least `world`.
        batch_tokens: the average number of tokens a batch, in place of `batch_size`; at least two of the longest rows.
        shuffle: whether to shuffle, for training; False gives the rows sorted by length, the same every time.
        seed, epoch: decide the order. `epoch` is a function since Lightning does not set the epoch of a resumed run.
        rank, world: the index of this process among the `world` processes.
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
        # Every epoch has the same number: Lightning counts batches once.
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
        return iter([shard for batch in self._batches() if (shard := self._shard(batch))])

    def _shard(self, batch: list[int]) -> list[int]:
        return batch if self.shuffle and len(batch) < self.world else batch[self.rank :: self.world]

    def _batches(self) -> list[list[int]]:
        if not self.shuffle:
            return self._split(self.lengths.argsort(stable=True), self.batches)
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch())) % 2**63)
        order = torch.randperm(len(self.lengths), generator=generator)
        batches: list[list[int]] = []
        for window, count in self._windows(order):
            batches += self._split(window[self.lengths[window].argsort(stable=True)], count)
        return [batches[i] for i in torch.randperm(len(batches), generator=generator)]

    def _windows(self, order: Tensor) -> list[tuple[Tensor, int | None]]:
        if not self.batches:
            return [(window, None) for window in order.split(WINDOW * self.batch_size)]
        windows = -(-self.batches // WINDOW)
        counts = [len(part) for part in torch.arange(self.batches).tensor_split(windows)]
        return list(zip(order.tensor_split(windows), counts, strict=True))

    def _split(self, rows: Tensor, count: int | None) -> list[list[int]]:
        if not count:
            return [batch.tolist() for batch in rows.split(self.batch_size)]
        # A row goes where its middle falls: no row is longer than a batch, so no batch is empty.
        lengths = self.lengths[rows]
        middles = lengths.cumsum(0) - lengths / 2
        numbers = (middles * count / lengths.sum()).long().clamp(max=count - 1)
        return [batch.tolist() for batch in rows.split(numbers.bincount(minlength=count).tolist())]
