"""Errors of disks that are full, over their quota, read-only or out of reach, reported in one line."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdnas.base.errors import chain

FAULTS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ENOTCONN}
)
"""Error numbers that mean a disk failed. A missing file or permission is more often a user's mistake."""
BLOCK = 1 << 16
"""Bytes that are written to test whether a folder can be written to."""
GB = 10**9


class DiskError(OSError):
    """A disk cannot be written to. The message is one line: the path, the reason, the free space."""

    def __init__(self, message: str) -> None:  # one argument, unlike OSError's, also when it is unpickled
        super().__init__(message)


@contextmanager
def writing(path: Path, size: int = BLOCK) -> Iterator[None]:
    """Turns an error of a block that writes `size` bytes to a path into a `DiskError` if the path's disk caused it."""
    try:
        yield
    except Exception as error:
        if met := disk_error(error, path.parent, size=size):
            raise met from error
        raise


def disk_error(error: BaseException, *folders: Path, size: int = BLOCK) -> DiskError | None:
    """Returns the disk error behind an error, if there is one.

    It is found in the error's chain of causes or, because some libraries drop the cause, by a test of whether `size`
    bytes can be written to each of the folders just now.
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
    return None if error.filename is None or isinstance(error.filename, int) else Path(os.fsdecode(error.filename))


def obstacle(folder: Path, size: int = BLOCK) -> OSError | None:
    """Returns the error that reserving so many bytes in a folder raises; None if they can be written."""
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
    """Describes the free space on the disk of a path."""
    there = next(part for part in (path.absolute(), *path.absolute().parents) if part.exists())
    try:
        free, files = shutil.disk_usage(there).free, os.statvfs(there)
    except OSError as error:
        return f"the disk does not answer: {error.strerror}"
    if files.f_files and not files.f_favail:
        return "no room for one more file"
    return f"{free / GB:.3g} GB free" if free else "nothing free"
