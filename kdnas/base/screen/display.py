"""Shows the activities of this process: live on a terminal, else by a log line from time to time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from kdnas.base.screen.activities import Activity

log = logging.getLogger(__name__)
SILENCE = ((600.0, 8.0), (float("inf"), 28.0))
"""Seconds without a line after which the progress is logged, as pairs: (up to this age of the process, seconds)."""


class Board:
    """The display of this process's activities, the outermost first.

    Attributes:
        foreground: whether the user has started this process, so that it may use the terminal for a live display.
        narrated: whether a search runs in this process; it logs the progress of its jobs itself.
    """

    def __init__(self) -> None:
        self.console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
        self.foreground = self.narrated = False
        self.activities: list[Activity] = []
        self.aside: ContextVar[bool] = ContextVar("aside", default=False)
        self._hidden: set[int] = set()
        self._live: Live | None = None
        self._lock = threading.RLock()
        self._birth = self._printed = time.monotonic()
        self._heart: threading.Thread | None = None

    @property
    def live(self) -> bool:
        """Whether the live display is shown just now."""
        return self._live is not None

    def print(self, text: str) -> None:
        """Prints text, above the live display if there is one."""
        self._printed = time.monotonic()
        self.console.print(text)

    def begin(self, shown: Activity) -> None:
        with self._lock:
            if not self.activities and self.aside.get():
                self._hidden.add(id(shown))
            self.activities.append(shown)
            terminal = self.foreground and self.console.is_terminal and not self.console.is_dumb_terminal
            if terminal and not self.live and not self.hidden:
                self._live = Live(
                    get_renderable=self._render, console=self.console, refresh_per_second=4, transient=True
                )
                self._live.start()
            if self._heart is None or not self._heart.is_alive():
                self._heart = threading.Thread(target=self._beat, daemon=True, name="kdnas-heartbeat")
                self._heart.start()

    def end(self, shown: Activity) -> None:
        with self._lock:
            self.activities.remove(shown)
            self._hidden.discard(id(shown))
            if not self.activities and self._live is not None:
                live, self._live = self._live, None
                live.stop()

    @property
    def hidden(self) -> bool:
        """Whether the current activities belong to a job whose progress the search logs."""
        return bool(self.activities) and id(self.activities[0]) in self._hidden

    def _render(self) -> RenderableType:
        grid = Table.grid(padding=(0, 1))
        for _ in range(3):
            grid.add_column(no_wrap=True)
        shown = list(self.activities)
        for number, one in enumerate(shown):
            if one.share is None and number < len(shown) - 1:
                continue
            bar = Spinner("dots") if one.share is None else ProgressBar(1.0, one.share, width=24)
            grid.add_row(Text(one.what), bar, Text(one.state, style="dim", overflow="ellipsis"))
        return grid

    def _beat(self) -> None:
        while True:
            time.sleep(0.5)
            now = time.monotonic()
            longest = next(gap for age, gap in SILENCE if now - self._birth < age)
            shown = list(self.activities)
            if shown and now - self._printed >= longest:
                self._printed = now
                names = list(dict.fromkeys(one.what for one in shown))[-2:]
                log.info("%s, %s", ": ".join(names), shown[-1].state, extra={"heartbeat": True})


board = Board()


@contextmanager
def aside(apart: bool = True) -> Iterator[None]:
    """Keeps log lines of the block, warnings included, from the terminal: they go to log files only."""
    token = board.aside.set(apart or board.aside.get())
    try:
        yield
    finally:
        board.aside.reset(token)
