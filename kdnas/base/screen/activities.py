"""Pieces of work that take a while, with their progress."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kdnas.base.screen.display import board


class Activity:
    """A piece of work that takes a while, as "reading the data", with the number of its steps `done`.

    Args:
        total: the number of steps; None if it is not known.
        note: returns the text to show in place of the share, the `words` and the time left; if empty, these are shown.
    """

    def __init__(self, what: str, total: float | None = None, note: Callable[[], str] | None = None) -> None:
        self.what, self.total, self.words, self.note = what, total, "", note
        self.done = self._first = 0.0
        self.start = time.monotonic()

    def begin_at(self, done: float) -> None:
        """Sets the steps that an earlier run had done, which do not count for the time left."""
        self.done = self._first = done

    def advance(self, steps: float) -> None:
        self.done += steps

    @property
    def share(self) -> float | None:
        """The share of the work that is done, from 0 to 1; None if it is not known."""
        return min(1.0, self.done / self.total) if self.total else None

    @property
    def left(self) -> float | None:
        """The estimated seconds left; None if they are not known."""
        if not self.total or self.done <= self._first:
            return None
        return (time.monotonic() - self.start) / (self.done - self._first) * max(0.0, self.total - self.done)

    @property
    def state(self) -> str:
        """The progress in a few words."""
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
    """Shows a piece of work (see `Activity`) while the block runs."""
    shown = Activity(what, total, note)
    board.begin(shown)
    try:
        yield shown
    finally:
        board.end(shown)


def duration(seconds: float) -> str:
    """Formats a duration as 40 s, 12 min or 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
