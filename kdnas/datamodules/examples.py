"""Rows by source and set, with counts of those that were left out, and why, and of the classes."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from kdnas.base.errors import ConfigError
from kdnas.datamodules.flat import Flat
from kdnas.tasks.labels import column_values

log = logging.getLogger(__name__)
TRAINING, HELD_OUT, TRANSFER = "training", "held-out", "transfer"
VISIBLE = r"[^\s\pZ\p{Cc}\p{Cf}]"


class Examples:
    """Rows of one source (`origin`) that are kept so far, counts of those that filters have left out, and warnings."""

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
            visible = pc.match_substring_regex(column_values(self.rows, column), VISIBLE)
            self.keep_where(_mask(visible), "without text")

    def keep_present(self, columns: Sequence[str], why: str) -> None:
        """Keeps the rows that have a value in every column."""
        for column in columns:
            if self.rows.data.column(column).null_count:  # cheap: Arrow stores this count
                self.keep_where(_mask(pc.is_valid(column_values(self.rows, column))), why)

    def sample(self, size: int | None, seed: int, limit: str) -> None:
        """Shuffles the rows and keeps the first `size`, if that is not None; `limit` is the name of that setting."""
        self.rows = self.rows.shuffle(seed=seed)
        if size and size < len(self.rows):
            self.keep(self.rows.select(range(size)), f"over {limit}={size}")

    def replace(self, rows: Dataset, what: str) -> None:
        """Replaces the rows by the pieces that they were split into, which `what` names; the counts start anew."""
        self._steps.append((f"{len(rows)} {what}", {}))
        self.rows = rows

    def __str__(self) -> str:
        return "; ".join(
            f"{step}, {sum(left_out.values())} left out{_reasons(left_out)}" for step, left_out in self._steps
        )


def _reasons(counts: dict[str, int]) -> str:
    return f" ({', '.join(f'{count} {why}' for why, count in counts.items())})" if counts else ""


def _mask(values: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(values, False).to_numpy().astype(bool)


@dataclass(frozen=True)
class Summary:
    """The composition of a set: how many rows are used, were cut at `max_length` tokens, and are of each class."""

    name: str
    examples: Sequence[Examples]
    used: int
    proxy: float
    truncated: int
    max_length: int
    classes: Mapping[str, int]

    def check(self, error: Callable[[str], ConfigError]) -> None:
        """Refuses, by the `error` of its source, an empty set, and a training or held-out set with a single class."""
        origin = "; ".join(map(str, self.examples))
        if not self.used:
            raise error(f"leaves no {self.name} rows ({origin})")
        present = [name for name, count in self.classes.items() if count]
        if len(present) == 1 and self.name in (TRAINING, HELD_OUT):
            raise error(
                f"all {self.used} {self.name} rows are of class {present[0]}; must be of two or more ({origin})"
            )

    def log(self, repeated: int, same_source: bool) -> None:
        """Logs the counts in one line, and warnings about rows that are trained on as well."""
        share = f" (data.proxy={self.proxy})" if self.proxy < 1 else ""
        parts = [*map(str, self.examples), f"{self.used} used{share}, {self.truncated} cut at {self.max_length} tokens"]
        if self.classes:
            parts.append("classes " + ", ".join(f"{name}: {count}" for name, count in self.classes.items()))
        if repeated:
            parts.append(f"{repeated} are among the training rows")
        log.info("%s: %s", self.name, "; ".join(parts))
        for note in (note for examples in self.examples for note in examples.notes):
            log.warning("%s: %s", self.name, note)
        if same_source or repeated == self.used:
            log.warning("%s: these rows are trained on as well; their metrics say nothing about other texts", self.name)
        missing = [name for name, count in self.classes.items() if not count]
        if missing and self.name == TRAINING:
            log.warning("%s: no row is of class %s", self.name, ", ".join(missing))


def repeated(rows: Flat, known: Flat) -> int:
    """Counts the rows whose tokens are equal to those of a known row, whatever their labels."""
    wanted = list(_tokens(rows))
    found = set(wanted).intersection(_tokens(known))
    return sum(tokens in found for tokens in wanted)


def _tokens(rows: Flat) -> Iterator[bytes]:
    ids = rows.columns["input_ids"].numpy()
    for start, length in zip(rows.starts.tolist(), rows.lengths.tolist(), strict=True):
        yield ids[start : start + length].tobytes()
