"""Counts of rows: how many were read, how many were left out and why, and how many there are of each class."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from kdnas.base.errors import ConfigError
from kdnas.datamodules.flat import Flat

log = logging.getLogger(__name__)
TRAINING, HELD_OUT, TRANSFER = "training", "held-out", "transfer"
"""The names of the sets of rows."""
SEEN = r"[^\s\pZ\p{Cc}\p{Cf}]"
"""A pattern for a visible character."""


class Part:
    """Rows of one source, with counts of the rows that filters have left out.

    Args:
        rows: the rows as they were read.
        origin: a description of the source.
        notes: warnings about the rows.

    Attributes:
        rows: the rows that are kept so far.
    """

    def __init__(self, rows: Dataset, origin: str, notes: Sequence[str] = ()) -> None:
        self.rows, self.origin, self.notes = rows, origin, list(notes)
        self._steps: list[tuple[str, dict[str, int]]] = [(f"{len(rows)} rows read ({origin})", {})]

    def keep(self, rows: Dataset, why: str) -> None:
        """Keeps some of the rows; `why` describes the rows left out, as "without label"."""
        left_out = self._steps[-1][1]
        if len(rows) < len(self.rows):
            left_out[why] = left_out.get(why, 0) + len(self.rows) - len(rows)
        self.rows = rows

    def keep_where(self, mask: np.ndarray, why: str) -> None:
        self.keep(self.rows if mask.all() else self.rows.select(np.flatnonzero(mask)), why)

    def keep_texts(self, columns: Sequence[str]) -> None:
        """Keeps the rows that have a visible character in every column."""
        for column in columns:
            self.keep_where(_mask(pc.match_substring_regex(values(self.rows, column), SEEN)), "without text")

    def keep_present(self, columns: Sequence[str], why: str) -> None:
        """Keeps the rows that have a value in every column."""
        for column in columns:
            if self.rows.data.column(column).null_count:  # cheap: Arrow stores this count
                self.keep_where(_mask(pc.is_valid(values(self.rows, column))), why)

    def become(self, rows: Dataset, what: str) -> None:
        """Replaces the rows by the pieces that they were split into, and counts on from these."""
        self._steps.append((f"{len(rows)} {what}", {}))
        self.rows = rows

    def __str__(self) -> str:
        return "; ".join(f"{said}, {_sum(left_out)} left out{_reasons(left_out)}" for said, left_out in self._steps)


def _sum(counts: dict[str, int]) -> int:
    return sum(counts.values())


def _reasons(counts: dict[str, int]) -> str:
    return f" ({', '.join(f'{count} {why}' for why, count in counts.items())})" if counts else ""


def _mask(values: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(values, False).to_numpy().astype(bool)


def values(rows: Dataset, column: str) -> pa.ChunkedArray:
    """Returns a column's values in the order of the rows."""
    return rows.select_columns([column]).with_format("arrow")[:][column]


def class_counts(rows: Dataset, classes: int | None, names: Sequence[str] | None) -> dict[str, int]:
    """Counts the tokenized rows of each class, by its name or else its id."""
    counts = np.bincount(values(rows, "labels").to_numpy(), minlength=classes or 0).tolist()
    return {names[number] if names else str(number): count for number, count in enumerate(counts)}


def repeated(rows: Flat, known: Flat) -> int:
    """Counts the rows whose tokens are equal to those of a known row, whatever their labels."""
    wanted = list(_tokens(rows))
    found = set(wanted).intersection(_tokens(known))
    return sum(tokens in found for tokens in wanted)


def _tokens(rows: Flat) -> Iterator[bytes]:
    ids = rows.columns["input_ids"].numpy()
    for start, length in zip(rows.starts.tolist(), rows.lengths.tolist(), strict=True):
        yield ids[start : start + length].tobytes()


@dataclass(frozen=True)
class Account:
    """The composition of a set of rows.

    Args:
        name: the name of the set.
        parts: the sources of its rows, with counts of the rows left out.
        used: the number of rows.
        share: a note on why fewer rows are used than were kept, as the proxy.
        cut: the number of rows that were truncated at `tokens` tokens.
        classes: the number of rows of each class; empty without classes.
    """

    name: str
    parts: Sequence[Part]
    used: int
    share: str
    cut: int
    tokens: int
    classes: Mapping[str, int]

    def check(self, source: object) -> None:
        """Refuses an empty set, and a training or held-out set with a single class.

        Args:
            source: the dataset, as messages name it.
        """
        origin = "; ".join(map(str, self.parts))
        if not self.used:
            raise ConfigError(f"{source}: leaves no {self.name} rows ({origin})")
        there = [name for name, count in self.classes.items() if count]
        if len(there) == 1 and self.name in (TRAINING, HELD_OUT):
            raise ConfigError(
                f"{source}: all {self.used} {self.name} rows are of class {there[0]}; must be of two or more ({origin})"
            )

    def say(self, repeated: int, same: bool) -> None:
        """Logs the counts in one line, and warnings about what may be wrong.

        Args:
            repeated: the number of rows that are among the training rows.
            same: whether the rows come from the same source as the training rows.
        """
        said = [*map(str, self.parts), f"{self.used} used{self.share}, {self.cut} cut at {self.tokens} tokens"]
        if self.classes:
            said.append("classes " + ", ".join(f"{name}: {count}" for name, count in self.classes.items()))
        if repeated:
            said.append(f"{repeated} are among the training rows")
        log.info("%s: %s", self.name, "; ".join(said))
        for part in self.parts:
            for note in part.notes:
                log.warning("%s: %s", self.name, note)
        if same or repeated == self.used:
            log.warning("%s: these rows are trained on as well; their metrics say nothing about other texts", self.name)
        missing = [name for name, count in self.classes.items() if not count]
        if missing and self.name == TRAINING:
            log.warning("%s: no row is of class %s", self.name, ", ".join(missing))
