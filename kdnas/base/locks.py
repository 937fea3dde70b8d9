"""Locks on files, as of runs, searches and jobs. A process that waits for one logs which process holds it."""

import fcntl
import json
import logging
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from kdnas.base.background import repeating

log = logging.getLogger(__name__)
PATIENCE = 10.0
"""Seconds to wait for a lock before the wait is logged."""
REPEAT = 60.0
"""Seconds between two log lines about a wait."""
SHOWN = 100
"""The number of characters of a command line that log lines show."""


@contextmanager
def alone(path: Path, why: str = "", busy: Callable[[str], Exception] | None = None) -> Iterator[None]:
    """Holds the exclusive lock on a file, which is made, with its folder, when absent.

    While it waits it logs `why`, as "the teacher"; with `busy`, it raises the error that this makes of the holders.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            if busy is None:
                take(file, fcntl.LOCK_EX, why)
            elif not free(file):
                raise busy(holders(file))
            if is_at(file, path):  # nobody removed it meanwhile
                yield
                return


def take(file: IO[str], mode: int, why: str = "") -> None:
    """Takes the lock on a file that is open for appending; logs who holds it after `PATIENCE` and every `REPEAT` s."""
    patience = time.monotonic() + PATIENCE
    while not try_lock(file, mode):
        if time.monotonic() > patience:
            _wait(file, mode, why)
            break
        time.sleep(0.005)
    if mode == fcntl.LOCK_EX:
        _sign(file)


def free(file: IO[str]) -> bool:
    """Tries to take the exclusive lock on a file, held until it is closed, without waiting; returns whether it has."""
    if not try_lock(file, fcntl.LOCK_EX):
        return False
    _sign(file)
    return True


def holders(file: IO[str]) -> str:
    """Describes who holds the lock on a file, if known: "process 12 (python train.py), since 12:00:05 (7 min)"."""
    note = _read_note(Path(file.name))
    pids = _local_holders(file)
    remote = note is not None and note["host"] != platform.node()
    # A process that is killed leaves its note behind.
    if note and (remote or (note["pid"] in pids if pids else command(note["pid"]) == note["command"])):
        since = time.strftime("%H:%M:%S", time.localtime(note["since"]))
        where = f" on {note['host']}" if remote else ""
        named = f"process {note['pid']}{where} ({_shown(note['command'])})"
        return f"{named}, since {since} ({minutes(time.time() - note['since'])})"
    return ", ".join(f"process {pid} ({_shown(command(pid))})" for pid in pids) or "a process that cannot be seen"


def command(pid: int) -> str:
    """Returns the command line of a process on this host; empty if it cannot be read."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return shlex.join(os.fsdecode(word) for word in words if word)


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < REPEAT else f"{seconds / 60:.0f} min"


def try_lock(file: IO[str], mode: int) -> bool:
    """Tries to take the lock on a file, without waiting; returns whether it has."""
    try:
        fcntl.flock(file, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(file: IO[str], path: Path) -> bool:
    """Returns whether an open file is the one at a path now: nobody has removed or replaced it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _wait(file: IO[str], mode: int, why: str) -> None:
    """Waits for a lock; logs meanwhile which process holds it."""
    began, what = time.monotonic() - PATIENCE, f"{why}: waiting" if why else "waiting"

    def say() -> None:
        log.info("%s for %s, still, %s", what, holders(file), minutes(time.monotonic() - began))

    log.info("%s for %s, which holds %s", what, holders(file), file.name)
    with repeating(say, REPEAT):
        fcntl.flock(file, mode)


def _sign(file: IO[str]) -> None:
    """Writes into a locked file which process holds the lock, for processes on other hosts."""
    note = {"pid": os.getpid(), "host": platform.node(), "command": shlex.join(sys.orig_argv), "since": time.time()}
    with suppress(OSError):  # the lock is valid without the note, as on a full disk
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
    """Returns the ids of the processes of this host that hold the lock on a file, from /proc/locks."""
    status = os.fstat(file.fileno())
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return []
    return sorted({int(words[4]) for words in locks if words[1] != "->" and words[5] == place and int(words[4]) > 0})


def _shown(words: str) -> str:
    text = words if len(words) <= SHOWN else f"{words[:SHOWN]}…"
    return text or "its command is hidden"
