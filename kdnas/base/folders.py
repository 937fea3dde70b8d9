"""Folders that one process works in at a time, and that are removed if the work is refused before it begins."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kdnas.base.errors import ConfigError
from kdnas.base.files import make_folder
from kdnas.base.locks import alone


class BusyFolderError(ConfigError):
    """Another process works in the folder: none of its files may be touched."""


@contextmanager
def claimed(folder: Path, key: str, lock: Path, what: str, begun: Callable[[], bool]) -> Iterator[None]:
    """Makes a folder and holds its lock; removes what it made if the block raises a `ConfigError` before it has begun.

    Args:
        lock: the lock file, in the folder or beside it.
        what: the work that another process may be at, for the `BusyFolderError`: "another run is at work there".
        begun: whether the folder holds something to keep.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(key, folder)

    def busy(holders: str) -> BusyFolderError:
        return BusyFolderError(f"{key}={folder}: {what}, {holders}; must be another folder")

    try:
        with alone(lock, busy=busy):
            try:
                yield
            except ConfigError:
                if made and not begun():
                    lock.unlink()
                    discard(*made)
                raise
    except OSError as error:
        if error.filename != str(lock):
            raise
        raise ConfigError(f"{key}={folder}: cannot be written to ({error.strerror})") from error


def discard(folder: Path, *above: Path) -> None:
    """Removes a folder with its files, then those of the folders above it that are empty."""
    with suppress(OSError):  # stops at the first folder that is not empty
        shutil.rmtree(folder)
        for path in above:
            path.rmdir()


def holds_only(folder: Path, names: Iterable[str]) -> bool:
    """Returns whether a folder holds nothing but files and folders of these names."""
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= set(names)
