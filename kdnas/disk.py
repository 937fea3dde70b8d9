"""Disks that are full, over their quota, read-only or out of reach: the machine's fault, and told in one line."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FAULTS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ENOTCONN}
)
"""The errors of a disk. A file that is not there, or not allowed, is more often a user's mistake."""
BLOCK = 1 << 16
"""Bytes to write to find out whether a folder can be written to."""
GB = 10**9


class DiskError(OSError):
    """A disk cannot be written to. The message is one line: the path, the reason, the room that is left."""

    def __init__(self, message: str) -> None:  # unlike an OSError's, always one argument, also when it is unpickled
        super().__init__(message)


@contextmanager
def writing(path: Path, size: int = BLOCK) -> Iterator[None]:
    """Says when it is the disk that keeps a block from writing a file or a folder; libraries raise all kinds of errors.

    Args:
        path: of what is written; its folder is there.
        size: bytes that it takes, as far as is known.

    Raises:
        DiskError: in place of any exception that the disk is to blame for.
    """
    try:
        yield
    except Exception as error:
        if met := disk_error(error, path.parent, size=size):
            raise met from error
        raise


def disk_error(error: BaseException, *folders: Path, size: int = BLOCK) -> DiskError | None:
    """The disk error behind an error, if there is one.

    It is one that the error came from or, because some libraries do not say what theirs came from, that of a folder
    which cannot be written to just now.

    Args:
        folders: what may have been written to.
        size: bytes that there should be room for.
    """
    obstacles = ((folder, obstacle(folder, size)) for folder in folders)
    met = next(((folder, found) for folder, found in obstacles if found), None)
    for one in chain(error):
        if isinstance(one, DiskError):
            return one
        if isinstance(one, OSError) and one.errno in FAULTS:
            path = _named(one) or (met or folders or (Path.cwd(),))[0]
            return DiskError(f"{path}: {one.strerror} ({room(path)})")
    return DiskError(f"{met[0]}: {met[1].strerror} ({room(met[0])})") if met else None


def _named(error: OSError) -> Path | None:
    """The file that an error names."""
    return None if error.filename is None or isinstance(error.filename, int) else Path(os.fsdecode(error.filename))


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it came from."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


def obstacle(folder: Path, size: int = BLOCK) -> OSError | None:
    """What keeps so many bytes from being written to a folder, found out by reserving them for a moment."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(min(size, BLOCK)))
            file.flush()
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None


def room(path: Path) -> str:
    """How much the disk of a path has left."""
    there = next(part for part in (path.absolute(), *path.absolute().parents) if part.exists())
    try:
        free, files = shutil.disk_usage(there).free, os.statvfs(there)
    except OSError as error:
        return f"the disk does not answer: {error.strerror}"
    if files.f_files and not files.f_favail:
        return "no room for one more file"
    return f"{free / GB:.3g} GB free" if free else "nothing free"
