"""Labelled single texts or pairs: GLUE's tasks and whatever is laid out like them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from kdnas.datamodules.base import EncodedDataModule, read_dataset, take_split


class GlueDataModule(EncodedDataModule):
    """A classification or regression task. Distillation uses the same rows and ignores the labels.

    Args:
        path, name: of the dataset, as `datasets.load_dataset` takes them.
        columns: one text column, or two that make a pair.
        label: the column of class ids or of numbers; rows with a class id below 0 have none and are dropped.
        split, validation: the splits to train on and to hold out.
        settings: of `EncodedDataModule`.
    """

    def __init__(
        self,
        path: str,
        columns: Sequence[str],
        name: str | None = None,
        label: str = "label",
        split: str = "train",
        validation: str = "validation",
        **settings: Any,
    ) -> None:
        super().__init__(source=path, **settings)
        self.path, self.name = path, name
        self.columns, self.label = list(columns), label
        self.split, self.validation_split = split, validation

    def load(self) -> tuple[Dataset, Dataset]:
        dataset = read_dataset(self.path, self.name)
        train = take_split(dataset, self.path, self.split, [*self.columns, self.label])
        held_out = take_split(dataset, self.path, self.validation_split, [*self.columns, self.label])
        return self.prepare(train, self.rows), self.prepare(held_out, self.held_out)

    def prepare(self, rows: Dataset, limit: int | None) -> Dataset:
        if "int" in rows.features[self.label].dtype:
            rows = rows.filter(lambda labels: [label >= 0 for label in labels], input_columns=self.label, batched=True)
        return self.encode(self.sample(rows, limit), self.columns, self.label)
