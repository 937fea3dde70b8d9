"""A folder, and a lock between training and measuring, that the processes of one user on one host share."""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdnas.base.errors import ConfigError
from kdnas.base.locks import take, try_lock

TEMPORARY = Path("/tmp")
"""The folder that all processes of a host have in common; not $TMPDIR, which a cluster sets for each job."""


def host_folder() -> Path:
    """Makes the folder that a user's processes on one host share; a ConfigError refuses one that others can write to.

    If /tmp holds something else under its name, which another user can arrange, a folder in $XDG_RUNTIME_DIR is used.
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
    """Makes a folder if it is absent; returns what is wrong with it, empty if nothing is."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except FileExistsError:
        return "is no folder"
    except OSError as error:
        return f"cannot be made: {error.strerror}"
    if not stat.S_ISDIR(status.st_mode):
        return "is no folder"  # not even a link to one, which could lead anywhere
    if status.st_uid != os.getuid():
        return f"belongs to user {status.st_uid}"
    return "can be written to by others" if status.st_mode & 0o022 else ""


class QuietHost:
    """A lock across the processes of a host, which keeps training steps out of latency measurements.

    A training step holds `busy()`, a measurement `quiet()`. Many processes can be busy at once. A measurement waits
    for the steps under way, and no new step starts before it ends: a second lock, the gate, keeps a stream of steps
    from starving the measurement. The kernel frees the locks of a process that dies.
    """

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or host_folder()
        self.gate, self.host = folder / "gate.lock", folder / "host.lock"

    @contextmanager
    def busy(self) -> Iterator[None]:
        with self._locked(self.host, fcntl.LOCK_SH, behind_gate=True):
            yield

    def wanted(self) -> bool:
        """Returns whether a measurement is waiting for the host."""
        with self.gate.open("a") as file:
            return not try_lock(file, fcntl.LOCK_SH)

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
