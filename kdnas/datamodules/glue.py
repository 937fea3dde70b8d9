"""Labelled single texts or pairs: GLUE's tasks and datasets of the same form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, Value, concatenate_datasets

from kdnas.base.errors import ConfigError, require, require_whole
from kdnas.datamodules.base import HELD_OUT_SEED, EncodedDataModule
from kdnas.datamodules.counting import HELD_OUT, TRAINING, TRANSFER, Part, values
from kdnas.datamodules.labels import (
    Classes,
    check_names,
    check_numbers,
    classes_of,
    from_zero,
    further_classes,
    is_numeric,
)
from kdnas.datamodules.reading import Source, check_columns, further_source, kind_of


class GlueDataModule(EncodedDataModule):
    """A classification or regression task. Distillation uses the same rows, and their labels only in its last stage.

    Args:
        path, name, files, csv: the dataset (see `Source`).
        columns: one text column, or two columns of pairs.
        label: the column of classes (names, class ids or other whole numbers), or of regression targets. Rows without
            a label, or with a class id below 0, are left out.
        num_labels: the number of classes, 1 for regression; None for as many as the data has.
        labels: the names of the classes in the order of their ids, where the data has numbers; the order of the
            classes, where the data has names; None for the dataset's own names and order, or else sorted names.
        split, validation: the splits to train on and to hold out.
        also: further splits to hold out, by the suffix of their metrics' names (as MNLI's mismatched split).
        extra: further sources to train on, each a mapping with `path` (or `files`), `columns` and, optionally,
            `name`, `csv`, `split` and `label`. With a label (whose class names must be the task's) they are training
            rows like the task's own; with `label: null` they are a transfer set for the stages that need no labels. A
            text or pair that an earlier row or a held-out row holds is left out.
        settings: arguments of `EncodedDataModule`; `rows` limits each source.
    """

    def __init__(
        self,
        path: str | None,
        columns: Sequence[str],
        name: str | None = None,
        files: Mapping[str, Any] | None = None,
        csv: Mapping[str, Any] | None = None,
        label: str = "label",
        num_labels: int | None = None,
        labels: Sequence[str] | None = None,
        split: str = "train",
        validation: str = "validation",
        also: Mapping[str, str] | None = None,
        extra: Sequence[Mapping[str, Any]] = (),
        **settings: Any,
    ) -> None:
        super().__init__(source=Source(path, name, files, csv), **settings)
        if num_labels is not None:
            require_whole("task.num_labels", num_labels, 1)
        require(also is None or isinstance(also, Mapping), "data.also", also, "splits by name")
        require(isinstance(extra, list | tuple), "data.extra", extra, "a list of sources")
        self.columns, self.label, self.num_labels = check_columns(columns), label, num_labels
        self.labels = check_names(labels, num_labels)
        self.split, self.validation_split, self.also = split, validation, dict(also or {})
        self.extra = [further_source(one, ("split", "label"), f"data.extra.{i}") for i, one in enumerate(extra)]

    @property
    def classes(self) -> int | None:
        return self.num_labels

    @property
    def texts_per_row(self) -> int:
        return len(self.columns)

    def load(self) -> tuple[Dataset, Dataset]:
        splits = {TRAINING: self.split, HELD_OUT: self.validation_split, **self.also}
        parts = {name: self.read(name, self.source, split, self.columns, self.label) for name, split in splits.items()}
        return self.encode_all(parts)

    def encode_all(self, parts: dict[str, Part]) -> tuple[Dataset, Dataset]:
        """Filters, labels and tokenizes the rows of each set; keeps further held-out splits as `further`."""
        for part in parts.values():
            self._readable(part, self.label)
        classes = self._classes(parts)
        for part in parts.values():
            self._label(part, classes)
        train, *held_out = parts.values()
        self.sample(train, self.rows, self.seed, "data.rows")
        rows = self._extend(train, held_out, classes) if self.extra else train.rows
        for part in held_out:
            self.sample(part, self.held_out, HELD_OUT_SEED, "data.held_out")
        self.further = {name: self.encode(parts[name].rows, self.columns, self.label) for name in self.also}
        return self.encode(rows, self.columns, self.label), self.encode(parts[HELD_OUT].rows, self.columns, self.label)

    def _readable(self, part: Part, label: str | None) -> None:
        """Keeps the rows that have texts; casts labels that are whole numbers stored as floats to integers."""
        part.keep_texts([name for name in part.rows.column_names if name in self.columns])
        if label and self.num_labels != 1:
            as_ids(part, label)

    def _classes(self, parts: Mapping[str, Part]) -> Classes | None:
        """Finds the task's classes and keeps their names; returns None for a regression."""
        train = parts[TRAINING].rows
        if self.num_labels == 1 or (self.num_labels is None and self.labels is None and is_numeric(train, self.label)):
            for part in parts.values():
                check_numbers(part.rows, self.label, self.source)
            return None
        rows = {name: part.rows for name, part in parts.items()}
        classes = classes_of(rows, self.label, self.num_labels, self.labels, self.source)
        self.class_names = classes.names
        return classes

    def _label(self, part: Part, classes: Classes | None) -> None:
        """Keeps the rows that have a label, and replaces it by its class id."""
        if classes is not None:
            part.keep(classes.encode(part.rows, self.label), "without label")
        elif self.num_labels != 1:
            part.keep(from_zero(part.rows, self.label), "without label")

    def _extend(self, train: Part, held_out: Sequence[Part], classes: Classes | None) -> Dataset:
        """Joins the task's rows with those of labelled further sources; keeps unlabelled ones as `transfer`."""
        train.rows = train.rows.select_columns([*self.columns, self.label])
        for source, settings in self.extra:
            self._further(classes, source, **settings)
        known = {text for part in held_out for text in texts(part.rows, self.columns)}
        labelled_parts = [train, *self.parts[TRAINING][1:]]
        unlabelled_parts = self.parts.get(TRANSFER, [])
        for part in (*labelled_parts, *unlabelled_parts):
            part.keep(new_rows(part.rows, self.columns, known), "known already or held out")
        if unlabelled_parts:
            together = concatenate_datasets([part.rows for part in unlabelled_parts]).shuffle(seed=self.seed)
            self.transfer = self.encode(together, self.columns)
        return concatenate_datasets([part.rows for part in labelled_parts]).shuffle(seed=self.seed)

    def _further(
        self,
        classes: Classes | None,
        source: Source,
        columns: Sequence[str],
        split: str = "train",
        label: str | None = "label",
    ) -> None:
        """Reads the rows of a further source, and renames its columns to the task's."""
        if len(columns) != len(self.columns):
            raise ConfigError(f"{source.key}.columns={columns}: must be {len(self.columns)}, as the task's")
        part = self.read(TRAINING if label else TRANSFER, source, split, columns, label)
        found = dict(zip([*columns, *([label] if label else [])], [*self.columns, self.label], strict=False))
        part.rows = part.rows.select_columns(list(found)).rename_columns({a: b for a, b in found.items() if a != b})
        self._readable(part, self.label if label else None)
        if label:
            self._label(part, further_classes(part.rows, self.label, classes, source) if classes else None)
        self.sample(part, self.rows, self.seed, "data.rows")


def as_ids(part: Part, label: str) -> None:
    """Casts float labels to integers if all of them are whole numbers; leaves out missing ones.

    Pandas stores 0 and 1 as 0.0 and 1.0 where a label is missing.
    """
    if "float" not in kind_of(part.rows, label):
        return
    labels = values(part.rows, label).to_numpy()
    there = ~np.isnan(labels)
    if (abs(labels[there]) < 2**53).all() and (labels[there] % 1 == 0).all():
        part.keep_where(there, "without label")
        part.rows = part.rows.cast_column(label, Value("int64"))


def texts(rows: Dataset, columns: Sequence[str]) -> set[tuple[str, ...]]:
    return set(zip(*(rows[column] for column in columns), strict=True))


def new_rows(rows: Dataset, columns: Sequence[str], known: set[tuple[str, ...]]) -> Dataset:
    """Returns the rows whose texts are not in `known`, each text once, and adds them to `known`."""
    keep = []
    for index, text in enumerate(zip(*(rows[column] for column in columns), strict=True)):
        if text not in known:
            known.add(text)
            keep.append(index)
    return rows.select(keep)
