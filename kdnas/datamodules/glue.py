"""Labelled single texts or pairs: GLUE's tasks and whatever is laid out like them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Value, concatenate_datasets

from kdnas.datamodules.base import HELD_OUT_SEED, EncodedDataModule
from kdnas.datamodules.counting import HELD_OUT, TRAINING, TRANSFER, Part, values
from kdnas.datamodules.reading import NESTED, Source, check_columns, further_source, kind_of
from kdnas.errors import ConfigError, is_number, require, require_whole


class GlueDataModule(EncodedDataModule):
    """A classification or regression task. Distillation uses the same rows and needs their labels only at its end.

    Args:
        path, name, files, csv: the dataset (see `Source`).
        columns: one text column, or two that make a pair.
        label: the column of class ids or of numbers; rows without one, or with a class id below 0, are left out.
        num_labels: classes, 1 for numbers; None does not check.
        split, validation: the splits to train on and to hold out.
        also: further splits to hold out, by the name that their figures get (MNLI's mismatched one).
        extra: further sources to train on, each a mapping with `path` (or `files`), `columns` and, if not as usual,
            `name`, `csv`, `split` and `label`. With a label (whose class names must be the task's) they are training
            rows like the task's own; with `label: null` they are a transfer set for the stages that need no labels. A
            text or pair that the rows before it hold, or the held-out ones, is left out.
        settings: of `EncodedDataModule`; `rows` counts for each source.
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
        split: str = "train",
        validation: str = "validation",
        also: Mapping[str, str] | None = None,
        extra: Sequence[Mapping[str, Any]] = (),
        **settings: Any,
    ) -> None:
        super().__init__(source=Source(path, name, files, csv), **settings)
        if num_labels is not None:
            require_whole("data.num_labels", num_labels, 1)
        require(also is None or isinstance(also, Mapping), "data.also", also, "splits by name")
        require(isinstance(extra, list | tuple), "data.extra", extra, "a list of sources")
        self.columns, self.label, self.num_labels = check_columns(columns), label, num_labels
        self.split, self.validation_split, self.also = split, validation, dict(also or {})
        self.extra = [further_source(one, ("split", "label"), f"data.extra.{i}") for i, one in enumerate(extra)]

    @property
    def classes(self) -> int | None:
        return self.num_labels

    def load(self) -> tuple[Dataset, Dataset]:
        splits = {TRAINING: self.split, HELD_OUT: self.validation_split, **self.also}
        parts = {name: self.read(name, self.source, split, self.columns, self.label) for name, split in splits.items()}
        return self.encode_all(parts)

    def encode_all(self, parts: dict[str, Part]) -> tuple[Dataset, Dataset]:
        """Tokenizes the rows of each set that can be learned from; keeps further held-out ones as `further`."""
        for part in parts.values():
            self.prepare(part, self.label)
            self.check_labels(part.rows)
        train, *held_out = parts.values()
        self.class_names = getattr(train.rows.features[self.label], "names", None)
        self.sample(train, self.rows, self.seed, "data.rows")
        rows = self._extend(train, held_out) if self.extra else train.rows
        for part in held_out:
            self.sample(part, self.held_out, HELD_OUT_SEED, "data.held_out")
        self.further = {name: self.encode(parts[name].rows, self.columns, self.label) for name in self.also}
        return self.encode(rows, self.columns, self.label), self.encode(parts[HELD_OUT].rows, self.columns, self.label)

    def prepare(self, part: Part, label: str | None) -> None:
        """Goes on with the rows that have texts and, if one is asked for, a label."""
        part.keep_texts([name for name in part.rows.column_names if name in self.columns])
        if label and self.classes != 1:
            as_ids(part, label)
            part.keep(labelled(part.rows, label), "without label")

    def check_labels(self, rows: Dataset) -> None:
        """Refuses labels that are no numbers or, of a task with classes, not those of the classes."""
        kind, classes = kind_of(rows, self.label), self.num_labels or 1
        allowed = "finite numbers" if classes == 1 else f"whole numbers from 0 to {classes - 1}"
        for label in rows[:1][self.label] if kind == NESTED else rows.unique(self.label):
            fits = is_number(label) if classes == 1 else isinstance(label, int) and 0 <= label < classes
            if not fits or isinstance(label, bool):
                raise ConfigError(f"{self.source}: column {self.label} holds {kind}, as {label}; must be {allowed}")

    def _extend(self, train: Part, held_out: Sequence[Part]) -> Dataset:
        """The task's rows with those of the labelled sources; keeps the others as `transfer`."""
        train.rows = train.rows.select_columns([*self.columns, self.label])
        further = [self._further(source, **settings) for source, settings in self.extra]
        for part in further:
            if self.label in part.rows.column_names:
                part.rows = align(part.rows, self.label, train.rows.features[self.label], part.origin)
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
        self, source: Source, columns: Sequence[str], split: str = "train", label: str | None = "label"
    ) -> Part:
        """A further source's rows under the task's column names."""
        if len(columns) != len(self.columns):
            raise ConfigError(f"{source.key}.columns={columns}: must be {len(self.columns)}, as the task's")
        part = self.read(TRAINING if label else TRANSFER, source, split, columns, label)
        found = dict(zip([*columns, *([label] if label else [])], [*self.columns, self.label], strict=False))
        part.rows = part.rows.select_columns(list(found)).rename_columns({a: b for a, b in found.items() if a != b})
        self.prepare(part, self.label if label else None)
        self.sample(part, self.rows, self.seed, "data.rows")
        return part


def as_ids(part: Part, label: str) -> None:
    """Turns labels into whole numbers if they are some.

    Where one is missing, pandas stores the others as 0.0 and 1.0.
    """
    if "float" not in kind_of(part.rows, label):
        return
    labels = values(part.rows, label).to_numpy()
    there = ~np.isnan(labels)
    if (abs(labels[there]) < 2**53).all() and (labels[there] % 1 == 0).all():
        part.keep_where(there, "without label")
        part.rows = part.rows.cast_column(label, Value("int64"))


def labelled(rows: Dataset, label: str) -> Dataset:
    """The rows that have a label: not those whose class id is below 0."""
    if "int" not in kind_of(rows, label):
        return rows
    return rows.filter(lambda labels: [label >= 0 for label in labels], input_columns=label, batched=True)


def align(rows: Dataset, label: str, task: Any, path: str) -> Dataset:
    """The rows with the task's class ids, by the classes' names where both sides name them."""
    own = rows.features[label]
    if isinstance(own, ClassLabel) and isinstance(task, ClassLabel):
        if set(own.names) != set(task.names):
            raise ConfigError(
                f"data.extra: {path} has the classes {', '.join(own.names)}; must be {', '.join(task.names)}"
            )
        rows = rows.align_labels_with_mapping({name: task.str2int(name) for name in task.names}, label)
    return rows.cast_column(label, task)


def texts(rows: Dataset, columns: Sequence[str]) -> set[tuple[str, ...]]:
    return set(zip(*(rows[column] for column in columns), strict=True))


def new_rows(rows: Dataset, columns: Sequence[str], known: set[tuple[str, ...]]) -> Dataset:
    """The rows whose texts are not known yet, each text once; they are known from then on."""
    keep = []
    for index, text in enumerate(zip(*(rows[column] for column in columns), strict=True)):
        if text not in known:
            known.add(text)
            keep.append(index)
    return rows.select(keep)
