"""A summary of each set of rows: how many there are, how many were left out and why, how many of each class."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kdnas.datamodules.examples import Examples
from kdnas.datamodules.flat import Flat
from kdnas.datamodules.source import Source

log = logging.getLogger(__name__)
TRAINING, HELD_OUT, TRANSFER = "training", "held-out", "transfer"
"""The names of the sets of rows."""


@dataclass(frozen=True)
class Summary:
    """The composition of a set of rows.

    Args:
        used: the number of rows.
        proxy: the share of the kept rows that are used.
        truncated: the number of rows that were cut at `max_length` tokens.
        classes: the number of rows of each class; empty without classes.
    """

    name: str
    examples: Sequence[Examples]
    used: int
    proxy: float
    truncated: int
    max_length: int
    classes: Mapping[str, int]

    def check(self, source: Source) -> None:
        """Refuses, by the error of `source`, an empty set, and a training or held-out set with a single class."""
        origin = "; ".join(map(str, self.examples))
        if not self.used:
            raise source.error(f"leaves no {self.name} rows ({origin})")
        present = [name for name, count in self.classes.items() if count]
        if len(present) == 1 and self.name in (TRAINING, HELD_OUT):
            raise source.error(
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
