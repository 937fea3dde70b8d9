"""Maps the labels of a classification (names, numbers or truth values) to class ids, the same in all splits."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Value

from kdnas.base.errors import require
from kdnas.models.classes import order_of
from kdnas.tasks.labels import LabelError, Labels, cells, column_values, content, listed, or_as_many

log = logging.getLogger(__name__)
Label = str | int


@dataclass(frozen=True)
class Classes(Labels):
    """The classes of a task: the id of each label, and the names by id (None where they are numbers only)."""

    ids: Mapping[Label, int]
    names: tuple[str, ...] | None = None

    def encode(self, rows: Dataset, column: str) -> Dataset:
        rows = without_fractions(rows, column)
        feature = rows.features[column]
        if isinstance(feature, ClassLabel | Value) and _are_ids(feature, self.ids):
            rows = rows.cast_column(column, Value("int64"))
        else:
            ids = dict(self.ids)

            def id_of(value: Any) -> int:
                label = label_of(value, feature)
                return -1 if label is None else ids.get(label, -1)

            features = rows.features.copy()
            features[column] = Value("int64")
            rows = rows.map(
                lambda values: {column: [id_of(value) for value in values[column]]},
                batched=True,
                features=features,
                desc="class ids",
            )
        return rows.filter(lambda encoded: [each >= 0 for each in encoded], input_columns=column, batched=True)

    def of_further(self, rows: Dataset, column: str) -> Labels:
        """Maps the labels of a further source to the task's classes: names by name, numbers as class ids."""
        rows = without_fractions(rows, column)
        feature = rows.features[column]
        labels = declared(feature) if isinstance(feature, ClassLabel) else labels_of(rows, column)
        ids: dict[Label, int] = {}
        for label in labels:
            same = [i for i, name in enumerate(self.names or ()) if order_of([str(label)], [name])]
            if label in self.ids or same:
                ids[label] = self.ids.get(label, same[0] if same else 0)
        if len(ids) < len(labels) and all(isinstance(label, int) for label in labels):
            log.info("a further source's labels are numbers, which are taken as the ids of the task's classes")
            ids = {i: i for i in range(len(self.ids))}
        if any(label not in ids and _is_label(label) for label in labels):
            allowed = ", ".join(self.names or map(str, self.ids))
            hint = "" if self.names else " (task.labels gives the task's classes names)"
            raise LabelError(f"holds the classes {listed(labels)}; must be {allowed}{hint}")
        return Classes(ids)

    def counts(self, rows: Dataset, column: str) -> dict[str, int]:
        counts = np.bincount(column_values(rows, column).to_numpy(), minlength=len(self.ids)).tolist()
        return {self.names[i] if self.names else str(i): count for i, count in enumerate(counts)}


def classes_of(
    splits: Mapping[str, Dataset], column: str, num_labels: int, names: Sequence[str] | None = None
) -> Classes:
    """Finds the classes of a task from the labels of its splits.

    Args:
        splits: the rows of each split by name; the first is the training split.
        names: the names of classes that are numbers in the data, or the order of classes that are names; None for the
            data's own.

    Raises:
        LabelError: the labels are not those of `num_labels` or `names`, or held-out rows have unknown ones.
    """
    train, *held_out = splits
    splits = {name: without_fractions(rows, column) for name, rows in splits.items()}
    feature = splits[train].features[column]
    found = {name: labels_of(rows, column) for name, rows in splits.items()}
    known: Sequence[Any] = declared(feature) if isinstance(feature, ClassLabel) else found[train]
    ids = list(range(num_labels))
    if all(isinstance(label, int) for label in known):
        known = _numbers(known, ids, names is not None, column, content(splits[train], column))
    elif names is not None:
        if not set(known) <= set(names):
            raise LabelError.of(column, f"the classes {listed(known)}", f"those of task.labels, {listed(names)}")
        known = list(names)
    if len(known) != num_labels:
        allowed = or_as_many(f"{num_labels} of them", len(known))
        raise LabelError.of(column, f"the classes {listed(known)}", allowed)
    own = None if list(known) == ids else tuple(map(str, known))
    classes = Classes({label: i for i, label in enumerate(known)}, tuple(names) if names is not None else own)
    for name in held_out:
        unknown = [label for label in found[name] if label not in classes.ids and _is_label(label)]
        if unknown:
            raise LabelError(
                f"the {name} rows hold the label {unknown[0]}, which the {train} rows do not; "
                f"must be one of {listed(list(classes.ids))}"
            )
    return classes


def check_names(names: Any, num_labels: int) -> tuple[str, ...] | None:
    """Checks the names of a task's classes, and returns them; None if there are none."""
    if names is None:
        return None
    fits = isinstance(names, list | tuple) and all(isinstance(name, str | int) and str(name) for name in names)
    texts = tuple(map(str, names)) if fits else ()
    require(
        fits and len(set(texts)) == len(texts) == num_labels and not any(isinstance(name, bool) for name in names),
        "labels",
        f"[{','.join(texts)}]" if texts else names,
        f"a list of {num_labels} different names, in the order of the classes",
    )
    return texts


def label_of(value: Any, feature: Any) -> Label | None:
    """Returns the label in a cell; None for an empty cell, and the cell itself if it cannot be a label."""
    if isinstance(feature, ClassLabel) and isinstance(value, int):
        value = feature.int2str(value) if value >= 0 else None
    if isinstance(value, str):
        text = value.strip()
        whole = text.removeprefix("-").isdecimal() and str(int(text)) == text
        return int(text) if whole else text or None
    return int(value) if isinstance(value, bool | int) or (isinstance(value, float) and value.is_integer()) else value


def labels_of(rows: Dataset, column: str) -> list[Label]:
    """Returns the distinct labels of the rows: numbers by value, then names alphabetically."""
    labels: set[Label] = set()
    for cell in cells(rows, column):
        label = label_of(cell, rows.features[column])
        if not isinstance(label, Label | None):
            raise LabelError.of(column, f"{content(rows, column)}, as {cell}", "names or whole numbers from 0")
        labels |= set() if label is None else {label}
    return sorted(labels, key=lambda label: (True, 0, label) if isinstance(label, str) else (False, label, ""))


def declared(feature: ClassLabel) -> list[Label]:
    """Returns the labels that a feature names, in the order of their ids."""
    labels = [label_of(i, feature) for i in range(feature.num_classes)]
    return ["" if label is None else label for label in labels]


def without_fractions(rows: Dataset, column: str) -> Dataset:
    """Casts float labels to integers if all are whole, as pandas stores them where one is missing; leaves these out."""
    if "float" not in content(rows, column):
        return rows
    labels = column_values(rows, column).to_numpy()
    present = ~np.isnan(labels)
    if not ((abs(labels[present]) < 2**53).all() and (labels[present] % 1 == 0).all()):
        return rows
    rows = rows if present.all() else rows.select(np.flatnonzero(present))
    return rows.cast_column(column, Value("int64"))


def _numbers(labels: Sequence[int], ids: list[int], named: bool, column: str, held: str) -> Sequence[int]:
    """Returns the numeric labels of the classes: the class ids or, if other numbers are used, all that occur."""
    known = [label for label in labels if _is_label(label)]
    if labels and labels[0] < 0 and 0 in labels and len(labels) == len(ids) and not named:
        raise LabelError.of(
            column,
            f"{held}, as {labels[0]}, which may stand for a missing label or for a class",
            f"whole numbers from 0; as classes, {listed(labels)} get names in that order by task.labels=[...]",
        )
    if len(labels) == len(ids):
        return labels  # as -1 and 1, or 1 to 5 stars, or the ids themselves
    allowed = f"whole numbers from 0 to {ids[-1]}"
    if not set(known) <= set(ids):
        raise LabelError.of(column, f"{held}, as {known[-1]}", or_as_many(allowed, len(known)))
    if known and known[-1] < ids[-1] and not named:  # a rare class in between may have no row
        raise LabelError.of(column, f"{held}, up to {known[-1]}", or_as_many(allowed, known[-1] + 1))
    return ids


def _are_ids(feature: ClassLabel | Value, ids: Mapping[Label, int]) -> bool:
    if isinstance(feature, ClassLabel):
        return all(ids.get(label) == i for i, label in enumerate(declared(feature)))
    return "int" in feature.dtype and all(label == i for label, i in ids.items())


def _is_label(label: Label) -> bool:
    """Returns whether a value is a label: a number below 0 that is no class means that the row has none."""
    return isinstance(label, str) or label >= 0
