"""Maps the labels of a task's rows (names, numbers or truth values) to class ids that are the same in all splits."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset, Value

from kdnas.base.errors import ConfigError, is_number, require
from kdnas.models.classes import order_of

log = logging.getLogger(__name__)
Label = str | int
"""A label: a name, or a whole number."""
SHOWN = 8
"""The most labels that a message lists."""


@dataclass(frozen=True)
class Classes:
    """The classes of a task.

    Args:
        ids: the class id of each label.
        names: the names of the classes, in the order of their ids; None where they are numbers only.
    """

    ids: Mapping[Label, int]
    names: tuple[str, ...] | None = None

    def encode(self, rows: Dataset, column: str) -> Dataset:
        """Returns the rows that have a label, with its class id in its place."""
        feature = rows.features[column]
        if isinstance(feature, ClassLabel | Value) and _are_ids(feature, self.ids):
            rows = rows.cast_column(column, Value("int64"))
        else:
            ids = dict(self.ids)

            def place(value: Any) -> int:
                label = label_of(value, feature)
                return -1 if label is None else ids.get(label, -1)

            features = rows.features.copy()
            features[column] = Value("int64")
            rows = rows.map(
                lambda values: {column: [place(value) for value in values[column]]},
                batched=True,
                features=features,
                desc="class ids",
            )
        return rows.filter(lambda encoded: [place >= 0 for place in encoded], input_columns=column, batched=True)


def label_of(value: Any, feature: Any) -> Label | None:
    """Returns the label in a cell; None for an empty cell, and the cell itself if it cannot be a label."""
    if isinstance(feature, ClassLabel) and isinstance(value, int):
        value = feature.int2str(value) if value >= 0 else None
    if isinstance(value, str):
        text = value.strip()
        whole = text.removeprefix("-").isdecimal() and str(int(text)) == text
        return int(text) if whole else text or None
    return int(value) if isinstance(value, bool | int) or (isinstance(value, float) and value.is_integer()) else value


def labels_of(rows: Dataset, column: str, source: object) -> list[Label]:
    """Returns the distinct labels of the rows, in order.

    Raises:
        ConfigError: a cell cannot be the label of a class.
    """
    feature = rows.features[column]
    cells = rows.unique(column) if isinstance(feature, Value | ClassLabel) else rows[:1][column]
    labels: set[Label] = set()
    for cell in cells:
        label = label_of(cell, feature)
        if not isinstance(label, Label | None):
            raise refusal(source, column, f"{held_by(rows, column)}, as {cell}", "names or whole numbers from 0")
        labels |= set() if label is None else {label}
    return sorted(labels, key=_place)


def declared(feature: ClassLabel) -> list[Label]:
    """Returns the labels that a feature names, in the order of their ids."""
    labels = [label_of(i, feature) for i in range(feature.num_classes)]
    return ["" if label is None else label for label in labels]


def classes_of(
    splits: Mapping[str, Dataset], column: str, num_labels: int | None, names: Sequence[str] | None, source: object
) -> Classes:
    """Finds the classes of a task from the labels of its splits.

    Args:
        splits: the rows of each split by name; the first is the training split.
        num_labels: the number of classes; None for as many as the training rows have.
        names: the names of classes that are numbers in the data, or the order of classes that are names; None for the
            data's own.
        source: the dataset, as messages name it.

    Raises:
        ConfigError: the labels are not those of `num_labels` or `names`, or held-out rows have unknown ones.
    """
    train, *held_out = splits
    feature = splits[train].features[column]
    found = {name: labels_of(rows, column, source) for name, rows in splits.items()}
    try:
        known = declared(feature) if isinstance(feature, ClassLabel) else found[train]
        classes = _classes(known, num_labels, names, held_by(splits[train], column))
    except _MisfitError as misfit:
        raise refusal(source, column, misfit.held, misfit.allowed) from misfit
    for name in held_out:
        unknown = [label for label in found[name] if label not in classes.ids and _is_label(label)]
        if unknown:
            raise ConfigError(
                f"{source}: the {name} rows hold the label {unknown[0]}, which the {train} rows do not; "
                f"must be one of {_told(list(classes.ids))}"
            )
    return classes


class _MisfitError(Exception):
    """The labels do not fit: what the column holds, and what would be allowed."""

    def __init__(self, held: str, allowed: str) -> None:
        super().__init__(held)
        self.held, self.allowed = held, allowed


def _classes(labels: Sequence[Any], num_labels: int | None, names: Sequence[str] | None, held: str) -> Classes:
    """Finds the classes of sorted training labels; `held` describes what their column holds."""
    count = num_labels or len(names or labels)
    ids = list(range(count))
    if all(isinstance(label, int) for label in labels):
        labels = _numbers(labels, ids, names is not None, held)
    elif names is not None:
        if not set(labels) <= set(names):
            raise _MisfitError(f"the classes {_told(labels)}", f"those of task.labels, {_told(names)}")
        labels = list(names)
    if len(labels) != count:
        raise _MisfitError(f"the classes {_told(labels)}", _or_as_many(f"{count} of them", len(labels)))
    own = None if list(labels) == ids else tuple(map(str, labels))
    return Classes({label: i for i, label in enumerate(labels)}, tuple(names) if names is not None else own)


def _numbers(labels: Sequence[int], ids: list[int], named: bool, held: str) -> Sequence[int]:
    """Returns the numeric labels of the classes: the class ids or, if other numbers are used, all that occur."""
    known = [label for label in labels if _is_label(label)]
    if labels[0] < 0 and 0 in labels and len(labels) == len(ids) and not named:
        raise _MisfitError(
            f"{held}, as {labels[0]}, which may stand for a missing label or for a class",
            f"whole numbers from 0; as classes, {_told(labels)} get names in that order by task.labels=[...]",
        )
    if len(labels) == len(ids):
        return labels  # as -1 and 1, or 1 to 5 stars, or the ids themselves
    allowed = f"whole numbers from 0 to {ids[-1]}"
    if not set(known) <= set(ids):
        raise _MisfitError(f"{held}, as {known[-1]}", _or_as_many(allowed, len(known)))
    if known and known[-1] < ids[-1] and not named:  # a rare class in between may have no row
        raise _MisfitError(f"{held}, up to {known[-1]}", _or_as_many(allowed, known[-1] + 1))
    return ids


def _or_as_many(allowed: str, count: int) -> str:
    return f"{allowed}, or task.num_labels={count}" if count > 1 else allowed


def check_numbers(rows: Dataset, column: str, source: object) -> None:
    """Refuses rows of a regression whose labels are not finite numbers."""
    feature = rows.features[column]
    if isinstance(feature, ClassLabel):
        allowed = _or_as_many("numbers", feature.num_classes)
        raise refusal(source, column, f"the classes {_told(feature.names)}", allowed)
    for label in rows.unique(column) if isinstance(feature, Value) else rows[:1][column]:
        if not is_number(label):
            raise refusal(source, column, f"{held_by(rows, column)}, as {label}", "finite numbers")


def is_numeric(rows: Dataset, column: str) -> bool:
    """Returns whether a column holds numbers that the dataset does not declare as classes."""
    feature = rows.features[column]
    return not isinstance(feature, ClassLabel) and "string" not in getattr(feature, "dtype", "")


def from_zero(rows: Dataset, column: str) -> Dataset:
    """Leaves out rows with an integer label below 0, which means that they have no label."""
    if "int" not in held_by(rows, column):
        return rows
    return rows.filter(lambda labels: [label >= 0 for label in labels], input_columns=column, batched=True)


def check_names(names: Any, num_labels: int | None) -> tuple[str, ...] | None:
    """Checks the given names of a task's classes, and returns them; None if there are none."""
    if names is None:
        return None
    fits = isinstance(names, list | tuple) and all(isinstance(name, str | int) and str(name) for name in names)
    told = tuple(map(str, names)) if fits else ()
    count = len(told) if num_labels is None else num_labels
    require(
        fits and len(set(told)) == len(told) == count and not any(isinstance(name, bool) for name in names),
        "task.labels",
        f"[{','.join(told)}]" if told else names,
        f"a list of {count or 'the'} different names, in the order of the classes",
    )
    return told


def further_classes(rows: Dataset, column: str, classes: Classes, source: object) -> Classes:
    """Maps the labels of a further source to the task's classes: names by name, numbers as class ids.

    Raises:
        ConfigError: the source has other classes, or has names while the task's classes have none.
    """
    feature = rows.features[column]
    labels = declared(feature) if isinstance(feature, ClassLabel) else labels_of(rows, column, source)
    by_name = {name: i for i, name in enumerate(classes.names or ())}
    ids: dict[Label, int] = {}
    for label in labels:
        same = [i for name, i in by_name.items() if order_of([str(label)], [name])]
        if label in classes.ids or same:
            ids[label] = classes.ids.get(label, same[0] if same else 0)
    if len(ids) < len(labels) and all(isinstance(label, int) for label in labels):
        log.info("%s: its labels are numbers, which are taken as the ids of the task's classes", source)
        ids = {i: i for i in range(len(classes.ids))}
    unknown = [label for label in labels if label not in ids and _is_label(label)]
    if unknown:
        allowed = ", ".join(classes.names or map(str, classes.ids))
        hint = "" if classes.names else " (task.labels gives the task's classes names)"
        raise ConfigError(f"{source}: holds the classes {_told(labels)}; must be {allowed}{hint}")
    return Classes(ids)


def held_by(rows: Dataset, column: str) -> str:
    """Describes what a column holds, for messages."""
    feature = rows.features[column]
    return feature.dtype if isinstance(feature, Value | ClassLabel) else "lists or the like"


def refusal(source: object, column: str, held: str, allowed: str) -> ConfigError:
    return ConfigError(f"{source}: column {column} holds {held}; must be {allowed}")


def _are_ids(feature: ClassLabel | Value, ids: Mapping[Label, int]) -> bool:
    """Returns whether the labels are already class ids, so that they need not be mapped one by one."""
    if isinstance(feature, ClassLabel):
        return all(ids.get(label) == i for i, label in enumerate(declared(feature)))
    return "int" in feature.dtype and all(label == i for label, i in ids.items())


def _is_label(label: Label) -> bool:
    """Returns whether a value is a label: a number below 0 that is no class means that the row has none."""
    return isinstance(label, str) or label >= 0


def _place(label: Label) -> tuple[bool, int, str]:
    """Sort key: numbers by value, then names alphabetically."""
    return (True, 0, label) if isinstance(label, str) else (False, label, "")


def _told(labels: Sequence[Any]) -> str:
    return ", ".join(map(str, labels[:SHOWN])) + (", ..." if len(labels) > SHOWN else "")
