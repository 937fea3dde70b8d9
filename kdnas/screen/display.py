"""The board on which everything that a process is doing is shown: live on a terminal, else by a line now and then."""

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
    from kdnas.screen.activities import Activity

log = logging.getLogger(__name__)
SILENCE = ((600.0, 8.0), (float("inf"), 28.0))
"""Seconds without a line after which one tells how far the work is: (until this age of the process, so many)."""
TICK = 0.5
"""Seconds between two looks at how long nothing has been said."""
REFRESH = 4
"""Updates of the live display a second."""


class Board:
    """What this process is doing, the outermost activity first.

    Attributes:
        console: standard output, wherever that leads at the moment.
        foreground: whether this is the process that the user has started, which may use the terminal for itself.
        narrated: whether a search runs here, which says itself what becomes of its jobs.
    """

    def __init__(self) -> None:
        self.console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
        self.foreground = self.narrated = False
        self.activities: list[Activity] = []
        self.aside: ContextVar[bool] = ContextVar("aside", default=False)
        self._hidden: set[int] = set()
        self._live: Live | None = None
        self._lock = threading.RLock()
        self._birth = self._spoke = time.monotonic()
        self._heart: threading.Thread | None = None

    @property
    def terminal(self) -> bool:
        """Whether there is a terminal that can show something live."""
        return self.foreground and self.console.is_terminal and not self.console.is_dumb_terminal

    @property
    def live(self) -> bool:
        """Whether something is shown live just now."""
        return self._live is not None

    def say(self, text: str) -> None:
        """Prints text, above what is shown live."""
        self._spoke = time.monotonic()
        self.console.print(text)

    def begin(self, shown: Activity) -> None:
        with self._lock:
            if not self.activities and self.aside.get():
                self._hidden.add(id(shown))
            self.activities.append(shown)
            if self.terminal and not self.live and not self.hidden:
                self._live = Live(
                    get_renderable=self._render, console=self.console, refresh_per_second=REFRESH, transient=True
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
        """Whether somebody else tells the user what is done here."""
        return bool(self.activities) and id(self.activities[0]) in self._hidden

    @property
    def state(self) -> str:
        """What is being done and how far it is, in one line."""
        shown = list(self.activities)
        if not shown:
            return ""
        names = list(dict.fromkeys(one.what for one in shown))[-2:]
        return f"{': '.join(names)}, {shown[-1].state}"

    def _render(self) -> RenderableType:
        """Draws a line for each activity that has steps, and for the innermost."""
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
        """Says how far the work is whenever nothing has been said for too long."""
        while True:
            time.sleep(TICK)
            now = time.monotonic()
            longest = next(gap for age, gap in SILENCE if now - self._birth < age)
            if self.activities and now - self._spoke >= longest:
                self._spoke = now
                log.info("%s", self.state, extra={"heartbeat": True})


board = Board()


@contextmanager
def aside(apart: bool = True) -> Iterator[None]:
    """Keeps what is said within from the terminal: it goes to log files alone. Warnings too: the search tells them."""
    token = board.aside.set(apart or board.aside.get())
    try:
        yield
    finally:
        board.aside.reset(token)
