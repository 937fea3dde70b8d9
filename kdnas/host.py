"""What the processes of one user on one host share: a folder, and a lock that keeps training out of measurements."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdnas.errors import ConfigError
from kdnas.locks import take

TEMPORARY = Path("/tmp")
"""Where every process of a host looks; not $TMPDIR, which a cluster sets for each job."""


def host_folder() -> Path:
    """Makes the folder where a user's processes on one host meet, and checks that nobody else can write to it.

    Where /tmp has something else under its name, as another user can arrange, $XDG_RUNTIME_DIR takes its place.

    Raises:
        ConfigError: neither is safe.
    """
    first = TEMPORARY / f"kdnas-{os.getuid()}"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    for folder in (first, Path(runtime) / "kdnas") if runtime else (first,):
        if not _fault(folder):
            return folder
    raise ConfigError(
        f"{first}: must be a folder of yours that only you can write to (it {_fault(first)}); "
        "remove it, or set XDG_RUNTIME_DIR to such a folder"
    )


def _fault(folder: Path) -> str:
    """What is wrong with a folder, which is made if nothing is there; empty if nothing is."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except FileExistsError:
        return "is no folder"
    except OSError as error:
        return f"cannot be made: {error.strerror}"
    if not stat.S_ISDIR(status.st_mode):
        return "is no folder"  # a link to one, which could lead anywhere
    if status.st_uid != os.getuid():
        return f"belongs to user {status.st_uid}"
    return "can be written to by others" if status.st_mode & 0o022 else ""


class QuietHost:
    """A host-wide lock with which measuring excludes training, across processes.

    A training step holds `busy()`, a measurement `quiet()`. Many processes can be busy at once; a measurement waits
    for the steps that are under way, and no new one starts before it ends. The gate in front keeps a stream of steps
    from starving it. The kernel frees the locks of a process that dies.
    """

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or host_folder()
        self.gate, self.host = folder / "gate.lock", folder / "host.lock"

    @contextmanager
    def busy(self) -> Iterator[None]:
        with self._locked(self.host, fcntl.LOCK_SH, behind_gate=True):
            yield

    def wanted(self) -> bool:
        """Whether a measurement is waiting for the host."""
        with self.gate.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    @contextmanager
    def quiet(self) -> Iterator[None]:
        with self._locked(self.gate, fcntl.LOCK_EX), self._locked(self.host, fcntl.LOCK_EX):
            yield

    @contextmanager
    def _locked(self, path: Path, mode: int, behind_gate: bool = False) -> Iterator[None]:
        with path.open("a") as file:
            if behind_gate:
                with self._locked(self.gate, fcntl.LOCK_SH):
                    take(file, mode)
            else:
                take(file, mode)
            yield
