"""Labelled single texts or pairs: GLUE's tasks and whatever is laid out like them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset, concatenate_datasets

from kdnas.datamodules.base import (
    NESTED,
    EncodedDataModule,
    check_columns,
    check_source,
    kind_of,
    read_dataset,
    take_split,
)
from kdnas.errors import ConfigError, is_number, require, require_whole


class GlueDataModule(EncodedDataModule):
    """A classification or regression task. Distillation uses the same rows and needs their labels only at its end.

    Args:
        path, name: of the dataset, as `datasets.load_dataset` takes them.
        columns: one text column, or two that make a pair.
        label: the column of class ids or of numbers; rows with a class id below 0 have none and are dropped.
        num_labels: classes, 1 for numbers; None does not check.
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
        split: str = "train",
        validation: str = "validation",
        also: Mapping[str, str] | None = None,
        extra: Sequence[Mapping[str, Any]] = (),
        **settings: Any,
    ) -> None:
        super().__init__(source=path, **settings)
        if num_labels is not None:
            require_whole("data.num_labels", num_labels, 1)
        require(also is None or isinstance(also, Mapping), "data.also", also, "splits by name")
        require(isinstance(extra, list | tuple), "data.extra", extra, "a list of sources")
        self.path, self.name = path, name
        self.columns, self.label, self.num_labels = check_columns(columns), label, num_labels
        self.split, self.validation_split, self.also = split, validation, dict(also or {})
        self.extra = [check_source(source, ("name", "split", "label")) for source in extra]

    @property
    def texts_per_row(self) -> int:
        return len(self.columns)

    def load(self) -> tuple[Dataset, Dataset]:
        dataset = read_dataset(self.path, self.name)
        train, held_out, *further = (
            take_split(dataset, self.path, split, [*self.columns, self.label])
            for split in (self.split, self.validation_split, *self.also.values())
        )
        if self.extra:
            train = self._extend(train, [held_out, *further])
        self.further = {name: self.prepare(rows, self.held_out) for name, rows in zip(self.also, further, strict=True)}
        return self.prepare(train, self.rows if not self.extra else None), self.prepare(held_out, self.held_out)

    def prepare(self, rows: Dataset, limit: int | None) -> Dataset:
        rows = labelled(rows, self.label)
        self.check_labels(rows)
        return self.encode(self.sample(rows, limit), self.columns, self.label)

    def check_labels(self, rows: Dataset) -> None:
        """Refuses labels that are no numbers or, of a task with classes, not those of the classes."""
        kind, classes = kind_of(rows, self.label), self.num_labels or 1
        allowed = "finite numbers" if classes == 1 else f"whole numbers from 0 to {classes - 1}"
        for label in rows[:1][self.label] if kind == NESTED else rows.unique(self.label):
            fits = is_number(label) if classes == 1 else isinstance(label, int) and 0 <= label < classes
            if not fits or isinstance(label, bool):
                raise ConfigError(
                    f"data.path={self.source}: column {self.label} holds {kind}, as {label}; must be {allowed}"
                )

    def _extend(self, train: Dataset, held_out: Sequence[Dataset]) -> Dataset:
        """The task's rows with those of the labelled sources; keeps the others as `transfer`."""
        wanted = [*self.columns, self.label]
        rows = [self.sample(labelled(train.select_columns(wanted), self.label), self.rows)]
        transfer = []
        for source in self.extra:
            found = self._source(**source)
            if self.label in found.column_names:
                rows.append(align(found, self.label, train.features[self.label], source["path"]))
            else:
                transfer.append(found)
        known = {text for part in held_out for text in texts(part, self.columns)}
        rows, transfer = ([new_rows(part, self.columns, known) for part in parts] for parts in (rows, transfer))
        if transfer:
            self.transfer = self.sample(self.encode(concatenate_datasets(transfer), self.columns), None)
        return concatenate_datasets(rows)

    def _source(
        self,
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
            rows = labelled(rows, label)
        rows = self.sample(rows, self.rows)
        return rows.rename_columns({a: b for a, b in zip(found, [*self.columns, self.label], strict=False) if a != b})


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
