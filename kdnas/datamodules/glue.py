"""Labelled single texts or pairs: GLUE's tasks and whatever is laid out like them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, concatenate_datasets

from kdnas.datamodules.base import EncodedDataModule, check_columns, check_source, read_dataset, take_split
from kdnas.datamodules.labels import (
    Classes,
    check_names,
    check_numbers,
    classes_of,
    from_zero,
    further_classes,
    is_numeric,
)
from kdnas.errors import ConfigError, require, require_whole


class GlueDataModule(EncodedDataModule):
    """A classification or regression task. Distillation uses the same rows and needs their labels only at its end.

    Args:
        path, name: of the dataset, as `datasets.load_dataset` takes them.
        columns: one text column, or two that make a pair.
        label: the column of classes (names, class ids or other whole numbers), or of numbers to learn. Rows with a
            class id below 0 have none and are dropped.
        num_labels: classes, 1 for numbers; None for as many as there are.
        labels: names of the classes, in the order of their ids, where the data has numbers; where it has names, their
            order; None for the data's own (names without an order of their own are sorted).
        split, validation: the splits to train on and to hold out.
        also: further splits to hold out, by the name that their figures get (MNLI's mismatched one).
        extra: further sources to train on, each a mapping with `path`, `columns` and, if not as usual, `name`, `split`
            and `label`. With a label (whose class names must be the task's) they are training rows like the task's
            own; with `label: null` they are a transfer set for the stages that need no labels. A text or pair that the
            rows before it hold, or the held-out ones, is dropped.
        settings: of `EncodedDataModule`; `rows` counts for each source.
    """

    def __init__(
        self,
        path: str,
        columns: Sequence[str],
        name: str | None = None,
        label: str = "label",
        num_labels: int | None = None,
        labels: Sequence[str] | None = None,
        split: str = "train",
        validation: str = "validation",
        also: Mapping[str, str] | None = None,
        extra: Sequence[Mapping[str, Any]] = (),
        **settings: Any,
    ) -> None:
        super().__init__(source=path, **settings)
        fits = isinstance(path, str) and bool(path)
        require(fits, "data.path", path, "a folder that holds a dataset, or a hub id")
        if num_labels is not None:
            require_whole("task.num_labels", num_labels, 1)
        require(also is None or isinstance(also, Mapping), "data.also", also, "splits by name")
        require(isinstance(extra, list | tuple), "data.extra", extra, "a list of sources")
        self.path, self.name = path, name
        self.columns, self.label, self.num_labels = check_columns(columns), label, num_labels
        self.labels = check_names(labels, num_labels)
        self.split, self.validation_split, self.also = split, validation, dict(also or {})
        self.extra = [check_source(source, ("name", "split", "label")) for source in extra]

    @property
    def texts_per_row(self) -> int:
        return len(self.columns)

    def load(self) -> tuple[Dataset, Dataset]:
        dataset = read_dataset(self.path, self.name)
        names = (self.split, self.validation_split, *self.also.values())
        splits = {name: take_split(dataset, self.path, name, [*self.columns, self.label]) for name in names}
        classes = self._classes(splits)
        splits = {name: self._labelled(rows, classes) for name, rows in splits.items()}
        train, held_out, *further = (splits[name] for name in names)
        if self.extra:
            train = self._extend(train, [held_out, *further], classes)
        self.further = {name: self.prepare(rows, self.held_out) for name, rows in zip(self.also, further, strict=True)}
        return self.prepare(train, self.rows if not self.extra else None), self.prepare(held_out, self.held_out)

    def _classes(self, splits: Mapping[str, Dataset]) -> Classes | None:
        """The task's classes, whose names are kept; None where labels are numbers to learn."""
        train = splits[self.split]
        if self.num_labels == 1 or (self.num_labels is None and self.labels is None and is_numeric(train, self.label)):
            for rows in splits.values():
                check_numbers(rows, self.label, self.source)
            return None
        classes = classes_of(splits, self.label, self.num_labels, self.labels, self.source)
        self.class_names = classes.names
        return classes

    def _labelled(self, rows: Dataset, classes: Classes | None) -> Dataset:
        """The rows that have a label: a class id, or a number."""
        if classes is not None:
            return classes.encode(rows, self.label)
        return rows if self.num_labels == 1 else from_zero(rows, self.label)

    def prepare(self, rows: Dataset, limit: int | None) -> Dataset:
        return self.encode(self.sample(rows, limit), self.columns, self.label)

    def _extend(self, train: Dataset, held_out: Sequence[Dataset], classes: Classes | None) -> Dataset:
        """The task's rows with those of the labelled sources; keeps the others as `transfer`."""
        wanted = [*self.columns, self.label]
        rows = [self.sample(train.select_columns(wanted), self.rows)]
        transfer: list[Dataset] = []
        for source in self.extra:
            found = self._source(classes, **source)
            (rows if self.label in found.column_names else transfer).append(found)
        known = {text for part in held_out for text in texts(part, self.columns)}
        rows, transfer = ([new_rows(part, self.columns, known) for part in parts] for parts in (rows, transfer))
        if transfer:
            self.transfer = self.sample(self.encode(concatenate_datasets(transfer), self.columns), None)
        return concatenate_datasets(rows)

    def _source(
        self,
        classes: Classes | None,
        path: str,
        columns: Sequence[str],
        name: str | None = None,
        split: str = "train",
        label: str | None = "label",
    ) -> Dataset:
        """A further source's rows under the task's column names."""
        if len(columns) != len(self.columns):
            raise ConfigError(
                f"data.extra: columns={list(columns)} of {path}: must be {len(self.columns)}, as the task's"
            )
        found = [*columns, *([label] if label else [])]
        rows = take_split(read_dataset(path, name), path, split, found).select_columns(found)
        if label:
            rows = self._labelled(rows, further_classes(rows, label, classes, path) if classes else None)
        rows = self.sample(rows, self.rows)
        return rows.rename_columns({a: b for a, b in zip(found, [*self.columns, self.label], strict=False) if a != b})


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
