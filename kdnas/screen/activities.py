"""Work that takes a while, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kdnas.screen.display import board
from kdnas.screen.words import duration


class Activity:
    """A piece of work that takes a while.

    Args:
        what: a few words, as "reading the data".
        total: how many steps the work has; None where nobody knows.
        note: says how far it is, in place of share and time, unless it has nothing to say.

    Attributes:
        done: how many steps are behind.
        words: further words, as the loss so far.
    """

    def __init__(self, what: str, total: float | None = None, note: Callable[[], str] | None = None) -> None:
        self.what, self.total, self.words, self.note = what, total, "", note
        self.done = self._first = 0.0
        self.start = time.monotonic()

    def begin_at(self, done: float) -> None:
        """Says how much had been done before, which took no time today."""
        self.done = self._first = done

    def advance(self, steps: float) -> None:
        self.done += steps

    @property
    def share(self) -> float | None:
        """The part of the work that is done, from 0 to 1; None where nobody knows."""
        return min(1.0, self.done / self.total) if self.total else None

    @property
    def left(self) -> float | None:
        """The seconds that are left if the work goes on as before; None where nobody knows."""
        if not self.total or self.done <= self._first:
            return None
        return (time.monotonic() - self.start) / (self.done - self._first) * max(0.0, self.total - self.done)

    @property
    def state(self) -> str:
        """How far the activity is, in a few words."""
        if self.note and (noted := self.note()):
            return noted
        share, left = self.share, self.left
        parts = [
            "" if share is None else f"{share:.0%}".replace("%", " %"),
            self.words,
            f"for {duration(time.monotonic() - self.start)}" if left is None else f"{duration(left)} left",
        ]
        return ", ".join(filter(None, parts))


@contextmanager
def activity(what: str, total: float | None = None, note: Callable[[], str] | None = None) -> Iterator[Activity]:
    """Shows a piece of work for as long as it takes."""
    shown = Activity(what, total, note)
    board.begin(shown)
    try:
        yield shown
    finally:
        board.end(shown)
