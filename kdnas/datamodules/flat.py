"""Tokenized rows, concatenated in a few tensors, from which batches are sliced quickly."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset as TorchDataset
from transformers import BatchEncoding

from kdnas.base.host import QuietHost
from kdnas.datamodules.bucketing import BucketSampler

COLUMNS = ("input_ids", "token_type_ids", "words")
"""The columns with a number for each token."""
ALIGNED = 8
"""Batches are padded to a multiple of this length, which is faster on accelerators."""


class Flat(TorchDataset[dict[str, Tensor]]):
    """The tokenized rows of a dataset; `row` and `token` are the indices of its first ones in a corpus."""

    def __init__(self, dataset: Dataset, row: int = 0, token: int = 0) -> None:
        table = dataset.with_format("arrow")[:]
        self.columns: dict[str, Tensor] = {}
        for name in COLUMNS:
            if name in table.column_names:
                values = table[name].combine_chunks()
                self.columns[name] = torch.from_numpy(np.array(values.flatten(), dtype=np.int32))
                self.lengths = torch.from_numpy(np.diff(np.array(values.offsets)).astype(np.int64))
        self.labels: Tensor | None = None
        if "labels" in table.column_names:
            labels = np.array(list(table["labels"].to_numpy()))  # (rows,) or (rows, labels a row)
            self.labels = torch.tensor(labels, dtype=torch.float if labels.dtype.kind == "f" else torch.long)
        self.row, self.token = row, token
        self.starts = self.lengths.cumsum(0) - self.lengths

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    def unlabelled(self) -> Flat:
        other = object.__new__(Flat)
        other.__dict__ |= self.__dict__ | {"labels": None}
        return other

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        start, length = int(self.starts[index]), int(self.lengths[index])
        row = {name: values[start : start + length].long() for name, values in self.columns.items()}
        row["tokens"] = torch.arange(self.token + start, self.token + start + length)
        row["rows"] = torch.tensor(self.row + index)
        if self.labels is not None:
            row["labels"] = self.labels[index]
        return row


class PadCollator:
    """Makes a batch of rows, padded to the longest: as Hugging Face's collators do, with three more entries.

    Besides the models' inputs and `labels`, a batch has `lengths` (of the rows, a list), `tokens` and `rows` (the
    indices of its real tokens, concatenated, and of its rows in the corpus, NumPy arrays). These stay on the host.
    No batch is padded beyond the `limit`, as models may have no positions for more.
    """

    def __init__(self, padding: int, limit: int | None = None) -> None:
        self.padding = {"input_ids": padding, "words": -1}
        self.limit = limit

    def __call__(self, rows: Sequence[Mapping[str, Tensor]]) -> BatchEncoding:
        lengths = [len(row["input_ids"]) for row in rows]
        aligned = -(-max(lengths) // ALIGNED) * ALIGNED
        width = max(max(lengths), min(aligned, self.limit or aligned))
        batch: dict[str, Any] = {"lengths": lengths}
        for name in COLUMNS:
            if name in rows[0]:
                empty = self.padding.get(name, 0)
                padded = pad_sequence([row[name] for row in rows], batch_first=True, padding_value=empty)
                batch[name] = torch.nn.functional.pad(padded, (0, width - padded.shape[1]), value=empty)
        batch["attention_mask"] = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
        if "labels" in rows[0]:
            batch["labels"] = torch.stack([row["labels"] for row in rows])
        if "tokens" in rows[0]:
            batch["tokens"] = torch.cat([row["tokens"] for row in rows]).numpy()
            batch["rows"] = torch.stack([row["rows"] for row in rows]).numpy()
        return BatchEncoding(batch)


class FlatCorpus:
    """Several sets of rows with consecutive indices, in batches of at most `budget` tokens."""

    def __init__(self, datasets: Sequence[Dataset], collate: PadCollator, budget: int = 4096) -> None:
        self.sets: list[Flat] = []
        self.rows = self.tokens = 0
        for dataset in datasets:
            self.sets.append(Flat(dataset, self.rows, self.tokens))
            self.rows, self.tokens = self.rows + len(self.sets[-1]), self.tokens + self.sets[-1].tokens
        self.collate, self.budget = collate, budget

    @cached_property
    def digest(self) -> str:
        digest = hashlib.sha256()
        for one in self.sets:
            for values in (one.lengths, *one.columns.values()):
                digest.update(values.numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def vocabulary(self) -> Tensor:
        """The ids of the tokens that occur, in order."""
        return torch.unique(torch.cat([one.columns["input_ids"].unique() for one in self.sets])).long()

    def batches(self) -> Iterator[BatchEncoding]:
        for one in self.sets:
            yield from self.batches_of(one)

    def first(self, tokens: int) -> list[BatchEncoding]:
        """Returns batches of the first training rows, which are shuffled: so many tokens at most, but one row."""
        train = self.sets[0]
        return list(self.batches_of(train, max(1, int((train.lengths.cumsum(0) <= tokens).sum()))))

    def batches_of(self, one: Flat, first: int | None = None) -> Iterator[BatchEncoding]:
        """Yields a set's rows, or its `first` ones, sorted by length."""
        for rows in BucketSampler(one.lengths[:first], batch_tokens=self.budget, shuffle=False):
            with QuietHost().busy():  # held while the caller uses the batch
                yield self.collate([one[row] for row in rows])
