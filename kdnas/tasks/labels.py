"""The labels of a dataset, and how they become the numbers that a loss takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from datasets import ClassLabel, Dataset, Value

SHOWN = 8


class LabelError(ValueError):
    """Labels that are not a task's. The message names the column or the rows, and what would be allowed."""

    @classmethod
    def of(cls, column: str, content: str, allowed: str) -> LabelError:
        return cls(f"column {column} holds {content}; must be {allowed}")


class Labels(ABC):
    """The encoding of a dataset's labels, the same for all splits; `names` are those of the classes, by id."""

    names: tuple[str, ...] | None = None

    @abstractmethod
    def encode(self, rows: Dataset, column: str) -> Dataset:
        """Returns the rows that have a label; each as a number, or a list of numbers of one length, for the loss."""

    def of_further(self, rows: Dataset, column: str) -> Labels:
        """Returns the encoding of a further source's labels, as the same classes; a `LabelError` refuses others."""
        return self

    def counts(self, rows: Dataset, column: str) -> dict[str, int]:
        """Counts the encoded rows of each class, by its name or else its id; empty without classes."""
        return {}


def column_values(rows: Dataset, column: str) -> pa.ChunkedArray:
    return rows.select_columns([column]).with_format("arrow")[:][column]


def cells(rows: Dataset, column: str) -> list[Any]:
    """Returns the distinct values of a column; of lists, which no task here has as labels, the first."""
    return rows.unique(column) if isinstance(rows.features[column], Value | ClassLabel) else rows[:1][column]


def content(rows: Dataset, column: str) -> str:
    """Describes what a column holds, for messages."""
    feature = rows.features[column]
    return feature.dtype if isinstance(feature, Value | ClassLabel) else "lists or the like"


def listed(labels: Sequence[Any]) -> str:
    return ", ".join(map(str, labels[:SHOWN])) + (", ..." if len(labels) > SHOWN else "")


def or_as_many(allowed: str, count: int) -> str:
    return f"{allowed}, or task.num_labels={count}" if count > 1 else allowed
