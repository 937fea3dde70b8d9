"""How long a process waits for a quiet host."""

from __future__ import annotations

import logging
import os
import time

log = logging.getLogger(__name__)
LONGEST = 10.0
"""Seconds between two tries at most; the first pause is of one second, and each is twice as long as the last."""


class Patience:
    """Waits between tries, until a quiet measurement was made or a time is over.

    One for all measurements of a process: a host that was busy for so long is likely to be busy for the next one too,
    which then has one try.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Takes note of a quiet measurement: the next one that is disturbed is waited for again."""
        self._since: float | None = None
        self._pause = 1.0
        self._told = False

    def wait(self, seconds: float) -> bool:
        """Pauses before another try; False, at once, if `seconds` have passed since the first that was disturbed."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        left = self._since + seconds - now
        if left <= 0:
            if not self._told:
                log.warning("the host is busy (load %.1f): latencies are estimates until it is quiet", load())
                self._told = True
            return False
        pause = min(self._pause, left)
        log.info(
            "the host is busy (load %.1f): measuring latency again in %.0f s, for %.0f s at most", load(), pause, left
        )
        self._pause = min(2 * self._pause, LONGEST)
        time.sleep(pause)
        return True


def load() -> float:
    """The processes that wanted to compute during the last minute, on average."""
    return os.getloadavg()[0]
