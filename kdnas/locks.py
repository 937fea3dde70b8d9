"""Locks on files. Who has to wait for one says for whom: on this host the kernel knows, elsewhere the file says it."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)
PATIENCE = 10.0
"""Seconds to wait for a lock without a word."""
REPEAT = 60.0
"""Seconds between two words on a wait."""
SHOWN = 100
"""Characters of a command line that are shown."""


@contextmanager
def alone(path: Path, why: str) -> Iterator[None]:
    """Holds the lock on a file (made when absent, with its folder), and has other processes wait meanwhile.

    Args:
        why: what a process that has to wait needs the lock for, as "the teacher".
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            take(file, fcntl.LOCK_EX, why)
            if _is_at(file, path):  # nobody removed it meanwhile
                yield
                return


def take(file: IO[str], mode: int, why: str = "") -> None:
    """Takes the lock on a file that is open for appending; says who holds it if that takes long, again each minute.

    Args:
        mode: `fcntl.LOCK_EX` or `LOCK_SH`.
        why: what it is needed for.
    """
    patience = time.monotonic() + PATIENCE
    while not _try(file, mode):
        if time.monotonic() > patience:
            with _saying(file, why):
                fcntl.flock(file, mode)
            break
        time.sleep(0.005)
    if mode == fcntl.LOCK_EX:
        _sign(file)


def free(file: IO[str]) -> bool:
    """Whether nobody holds the lock on a file; then this process does until it closes the file."""
    if not _try(file, fcntl.LOCK_EX):
        return False
    _sign(file)
    return True


def holders(file: IO[str]) -> str:
    """Who holds the lock on a file, as far as can be known: "process 12 (python train.py), since 12:00:05 (7 min)"."""
    note = _read_note(Path(file.name))
    pids = _local_holders(file)
    if note and (note["host"] != platform.node() or (note["pid"] in pids if pids else _alive(note))):
        since = time.strftime("%H:%M:%S", time.localtime(note["since"]))
        where = "" if note["host"] == platform.node() else f" on {note['host']}"
        named = f"process {note['pid']}{where} ({_shown(note['command'])})"
        return f"{named}, since {since} ({minutes(time.time() - note['since'])})"
    return ", ".join(f"process {pid} ({_shown(command(pid))})" for pid in pids) or "a process that cannot be seen"


def command(pid: int) -> str:
    """The command line of a process of this host; empty if it cannot be read."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return shlex.join(os.fsdecode(word) for word in words if word)


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < REPEAT else f"{seconds / 60:.0f} min"


def _try(file: IO[str], mode: int) -> bool:
    try:
        fcntl.flock(file, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


@contextmanager
def _saying(file: IO[str], why: str) -> Iterator[None]:
    """Says, in the background, that this process waits, and for whom."""
    ended, began = threading.Event(), time.monotonic() - PATIENCE
    what = f"{why}: waiting" if why else "waiting"

    def say() -> None:
        log.info("%s for %s, which holds %s", what, holders(file), file.name)
        while not ended.wait(REPEAT):
            log.info("%s for %s, still, %s", what, holders(file), minutes(time.monotonic() - began))

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _sign(file: IO[str]) -> None:
    """Writes into a file whose lock is held who holds it, for those on other hosts."""
    note = {"pid": os.getpid(), "host": platform.node(), "command": shlex.join(sys.orig_argv), "since": time.time()}
    with suppress(OSError):  # a full disk keeps nobody from the lock
        file.truncate(0)
        file.write(json.dumps(note) + "\n")
        file.flush()


def _read_note(path: Path) -> dict | None:
    try:
        note = json.loads(path.read_text())
        return note if note.keys() >= {"pid", "host", "command", "since"} else None
    except (OSError, ValueError, AttributeError):
        return None


def _local_holders(file: IO[str]) -> list[int]:
    """The processes of this host that hold the lock on a file, as Linux knows them."""
    status = os.fstat(file.fileno())
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return []
    return sorted({int(words[4]) for words in locks if words[1] != "->" and words[5] == place and int(words[4]) > 0})


def _alive(note: dict) -> bool:
    """Whether the process that wrote a note is still there: one that is killed leaves its note behind."""
    return command(note["pid"]) == note["command"]


def _shown(words: str) -> str:
    text = words if len(words) <= SHOWN else f"{words[:SHOWN]}…"
    return text or "its command is hidden"
