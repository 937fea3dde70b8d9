"""Unlabelled text to distil on: single texts or pairs, from one or several datasets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, concatenate_datasets

from kdnas.datamodules.base import EncodedDataModule, check_columns, check_source, read_dataset, take_split
from kdnas.errors import ConfigError, require, require_switch
from kdnas.screen import activity

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
SHORTEST = 4
"""Words below which a piece of text is a heading or a list mark rather than a sentence."""


def split_sentences(text: str) -> list[str]:
    """A text's sentences: cut at line ends and after . ! ?, without pieces of fewer than four words."""
    pieces = (piece for line in text.splitlines() for piece in SENTENCE_END.split(line.strip()))
    return [piece for piece in pieces if len(piece.split()) >= SHORTEST]


class TextDataModule(EncodedDataModule):
    """Text from a dataset and, if given, further ones mixed in.

    Args:
        path, name: of the dataset, as `datasets.load_dataset` takes them.
        columns: one column of texts, or two that make pairs.
        split, validation: splits to train on and to hold out; without `validation`, 5 % of the rows of `split`
            are held out.
        sentences: cut the texts of a single column into sentences.
        extra: further sources, each a mapping with the six keys above; `rows` and `held_out` count for each source.
        settings: of `EncodedDataModule`.
    """

    def __init__(
        self,
        path: str,
        columns: Sequence[str],
        name: str | None = None,
        split: str = "train",
        validation: str | None = None,
        sentences: bool = False,
        extra: Sequence[Mapping[str, Any]] = (),
        **settings: Any,
    ) -> None:
        super().__init__(source=path, **settings)
        require(isinstance(extra, list | tuple), "data.extra", extra, "a list of sources")
        more = {"name": name, "split": split, "validation": validation, "sentences": sentences}
        first = {"path": path, "columns": check_columns(columns), **more}
        self.sources = [first, *(check_source(source, tuple(more)) for source in extra)]

    @property
    def texts_per_row(self) -> int:
        return max(len(source["columns"]) for source in self.sources)

    def load(self) -> tuple[Dataset, Dataset]:
        pairs = [self._load_source(**source) for source in self.sources]
        train = concatenate_datasets([train for train, _ in pairs]).shuffle(seed=self.seed)
        return train, concatenate_datasets([held_out for _, held_out in pairs])

    def _load_source(
        self,
        path: str,
        columns: Sequence[str],
        name: str | None = None,
        split: str = "train",
        validation: str | None = None,
        sentences: bool = False,
    ) -> tuple[Dataset, Dataset]:
        require_switch("data.sentences", sentences)
        if sentences and len(columns) > 1:
            raise ConfigError(f"data.sentences=true: only of one column; data.columns={list(columns)}")
        dataset = read_dataset(path, name)
        train = take_split(dataset, path, split, columns)
        if validation:
            held_out = take_split(dataset, path, validation, columns)
        else:
            if len(train) < 2:
                raise ConfigError(f"data.path={path}: {split} holds one row; must be two to hold one out")
            parts = train.train_test_split(test_size=max(1, round(0.05 * len(train))), seed=self.seed)
            train, held_out = parts["train"], parts["test"]
        return self._prepare(train, columns, sentences, self.rows), self._prepare(
            held_out, columns, sentences, self.held_out
        )

    def _prepare(self, rows: Dataset, columns: Sequence[str], sentences: bool, limit: int | None) -> Dataset:
        rows = self.sample(rows.select_columns(list(columns)), limit)
        if sentences:
            self.check_texts(rows, columns)
            column = columns[0]
            with activity("splitting sentences"):
                rows = rows.map(
                    lambda batch: {column: [piece for text in batch[column] for piece in split_sentences(text)]},
                    batched=True,
                )
            rows = self.sample(rows, limit)
        return self.encode(rows, columns)
