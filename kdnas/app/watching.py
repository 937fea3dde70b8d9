"""Shows how the jobs of a search go on while the search waits for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kdnas.base.screen import activity

if TYPE_CHECKING:
    from kdnas.search.study import Study
    from kdnas.search.trial_log import TrialLog

LOOK_EVERY = 1.0
"""Seconds between two readings of the study while jobs run."""


@contextmanager
def watching(study: Study, trial_log: TrialLog) -> Iterator[None]:
    """Logs each trial that ends, from a background thread, while jobs run in this or other processes."""
    ended = threading.Event()

    with activity(trial_log.noun, total=trial_log.total, note=lambda: trial_log.summary) as shown:
        shown.begin_at(len(trial_log.logged))

        def look() -> None:
            with suppress(OSError):  # the search itself will raise it
                trial_log.log_ended(study)
            shown.done = len(trial_log.logged)

        def watch() -> None:
            while not ended.wait(LOOK_EVERY):
                look()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            look()


def last_line(folder: Path) -> str:
    """Returns the last line that a job in another process wrote to its log; empty if there is none yet."""
    logs = sorted(folder.glob("*.log"))
    lines = logs[-1].read_text(errors="replace").splitlines() if logs else []
    return lines[-1].partition(" - ")[2] if lines else ""
