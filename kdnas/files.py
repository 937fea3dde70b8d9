"""Files that appear whole or not at all, and locks on files."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)
PATIENCE = 10.0
"""Seconds to wait for a lock without a word."""


def write_whole(path: Path, text: str) -> None:
    """Writes a file beside its place, then moves it there."""
    fresh = path.with_name(f".{path.name}-{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def take(file: IO[str], mode: int) -> None:
    """Takes a lock, and says so if that is long in coming: a process that was stopped keeps the ones it has."""
    patience = time.monotonic() + PATIENCE
    while time.monotonic() < patience:
        try:
            return fcntl.flock(file, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.005)
    log.info("waiting for the other kdnas processes on this host, which hold %s", file.name)
    fcntl.flock(file, mode)
