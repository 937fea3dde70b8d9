"""The wait of a process for a quiet host."""

from __future__ import annotations

import logging
import os
import time

log = logging.getLogger(__name__)
LONGEST = 10.0
"""The longest pause in seconds between two attempts; pauses begin at one second and double."""


class QuietWait:
    """Pauses between attempts to measure, until one was undisturbed or a time limit is reached.

    All measurements of a process share one object: a host that was busy until the limit is likely to stay busy, so that
    the next measurement gets a single attempt.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Resets the time limit after an undisturbed measurement."""
        self._since: float | None = None
        self._next = 1.0
        self._warned = False

    def pause(self, limit: float) -> bool:
        """Pauses before another attempt; returns False if `limit` seconds have passed since the first disturbed one."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        left = self._since + limit - now
        if left <= 0:
            if not self._warned:
                log.warning("the host is busy (load %.1f): latencies are estimates until it is quiet", load())
                self._warned = True
            return False
        pause = min(self._next, left)
        log.info(
            "the host is busy (load %.1f): measuring latency again in %.0f s, for %.0f s at most", load(), pause, left
        )
        self._next = min(2 * self._next, LONGEST)
        time.sleep(pause)
        return True


def load() -> float:
    """Returns the host's load average of the last minute."""
    return os.getloadavg()[0]
