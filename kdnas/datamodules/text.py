"""Unlabelled text for distillation: single texts or pairs, from one or several datasets."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, concatenate_datasets

from kdnas.base.errors import require, require_switch
from kdnas.base.screen import activity
from kdnas.datamodules.base import HELD_OUT_SEED, EncodedDataModule
from kdnas.datamodules.examples import HELD_OUT, TRAINING, Examples
from kdnas.datamodules.source import Source, check_columns, further_source
from kdnas.tasks.labels import column_values

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
SHORTEST = 4
"""The fewest words of a sentence; shorter pieces of text are headings or list marks."""


def pieces(text: str) -> list[str]:
    """Splits a text into sentences, headings and list marks, at line ends and after . ! ?; returns at least one."""
    found = [piece for line in text.splitlines() for piece in SENTENCE_END.split(line.strip()) if piece]
    return found or [""]


def is_sentence(piece: str) -> bool:
    return len(piece.split(maxsplit=SHORTEST)) >= SHORTEST


class TextDataModule(EncodedDataModule):
    """Text from a dataset and, optionally, from further ones mixed in.

    Args:
        path, name, files, csv: the dataset (see `Source`).
        columns: one text column, or two columns of pairs.
        split, validation: splits to train on and to hold out; without `validation`, 5 % of the rows of `split`
            are held out, the same ones whatever the seed.
        sentences: whether to split the texts of a single column into sentences.
        extra: further sources, each a mapping with the keys above; `rows` and `held_out` limit each source.
        settings: arguments of `EncodedDataModule`.
    """

    def __init__(
        self,
        path: str | None,
        columns: Sequence[str],
        name: str | None = None,
        files: Mapping[str, Any] | None = None,
        csv: Mapping[str, Any] | None = None,
        split: str = "train",
        validation: str | None = None,
        sentences: bool = False,
        extra: Sequence[Mapping[str, Any]] = (),
        **settings: Any,
    ) -> None:
        source = Source(path, name, files, csv)
        super().__init__(source=source, **settings)
        require(isinstance(extra, list | tuple), "extra", extra, "a list of sources")
        more = {"split": split, "validation": validation, "sentences": sentences}
        self.sources: list[tuple[Source, dict[str, Any]]] = [(source, {"columns": check_columns(columns), **more})]
        self.sources += [further_source(one, tuple(more), f"extra.{i}") for i, one in enumerate(extra)]

    @property
    def texts_per_row(self) -> int:
        return max(len(settings["columns"]) for _, settings in self.sources)

    def load(self) -> tuple[Dataset, Dataset]:
        pairs = [self._load_source(source, **settings) for source, settings in self.sources]
        train = concatenate_datasets([train for train, _ in pairs]).shuffle(seed=self.seed)
        return train, concatenate_datasets([held_out for _, held_out in pairs])

    def _load_source(
        self,
        source: Source,
        columns: Sequence[str],
        split: str = "train",
        validation: str | None = None,
        sentences: bool = False,
    ) -> tuple[Dataset, Dataset]:
        require_switch(f"{source.prefix}sentences", sentences)
        fits = len(columns) == 1 or not sentences
        require(fits, f"{source.prefix}sentences", sentences, f"false with two columns, {list(columns)}")
        train = self.read(TRAINING, source, split, columns)
        held_out = self.read(HELD_OUT, source, validation, columns) if validation else None
        for examples in (train, held_out):
            if examples and not sentences:
                examples.keep_texts(columns)
        held_out = held_out or self._hold_out(train, source)
        for examples, limit, seed, key in (
            (train, self.rows, self.seed, "data.rows"),
            (held_out, self.held_out, HELD_OUT_SEED, "data.held_out"),
        ):
            examples.rows = examples.rows.select_columns(list(columns))
            examples.sample(limit, seed, key)
            if sentences:
                with activity("splitting sentences"):
                    split_sentences(examples, columns[0])
                examples.sample(limit, seed, key)
        return self.encode(train.rows, columns), self.encode(held_out.rows, columns)

    def _hold_out(self, train: Examples, source: Source) -> Examples:
        if len(train.rows) < 2:
            raise source.error(f"leaves one row; must be two to hold one out ({train})")
        size = max(1, round(0.05 * len(train.rows)))
        parts = train.rows.train_test_split(test_size=size, seed=HELD_OUT_SEED)
        train.keep(parts["train"], "held out")
        held_out = Examples(parts["test"], f"5 % of {train.origin}")
        self.examples.setdefault(HELD_OUT, []).append(held_out)
        return held_out


def split_sentences(examples: Examples, column: str) -> None:

    def split(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        found = [piece for text in batch[column] for piece in pieces(text)]
        return {column: found, "whole": [is_sentence(piece) for piece in found]}

    examples.replace(examples.rows.map(split, batched=True), "pieces")
    examples.keep_where(column_values(examples.rows, "whole").to_numpy(), f"of fewer than {SHORTEST} words")
    examples.rows = examples.rows.select_columns([column])
