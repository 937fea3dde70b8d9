"""The examples of one source, with counts of those that were left out, and why."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from kdnas.tasks.labels import column_values

VISIBLE = r"[^\s\pZ\p{Cc}\p{Cf}]"
"""A pattern for a visible character."""


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
