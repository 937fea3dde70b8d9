"""A search's folder: one search at a time, its log, and an earlier search that makes room for a new one."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdnas.base.errors import ConfigError
from kdnas.base.folders import claimed
from kdnas.base.locks import alone
from kdnas.base.run_folder import LOCK
from kdnas.base.screen import Lines, is_shown

log = logging.getLogger(__name__)


@contextmanager
def searching_in(folder: Path) -> Iterator[None]:
    """Makes and locks a search folder; removes a new one again if the search is refused before it begins."""
    lock = folder.with_name(f".{folder.name}.lock")  # beside the folder, which `set_aside` may move
    with claimed(folder, "search.dir", lock, "another search is running in it", lambda: holds_search(folder)):
        yield


def holds_search(folder: Path) -> bool:
    """Returns whether a folder holds a search that has begun."""
    from kdnas.search.journal import JOURNAL  # not above: Hydra imports this module at every start

    return (folder / JOURNAL).exists()


def set_aside(folder: Path) -> None:
    """Moves the files of an earlier search, if any, to a folder beside it; refuses to while a job of that search runs.

    A job that is still queued will find another search there, and end.
    """
    if not holds_search(folder):
        return
    for path in folder.glob(f"*/*/{LOCK}"):

        def busy(holders: str, job: Path = path.parent) -> ConfigError:
            return ConfigError(f"search.fresh=true: a job of the earlier search runs in {job}; end it first: {holders}")

        with alone(path, busy=busy):
            pass
    taken = {path.name for path in folder.parent.iterdir()}
    spare = next(name for i in range(1, 10**6) if (name := f"{folder.name}.old-{i}") not in taken)
    folder.rename(folder.with_name(spare))
    folder.mkdir()
    log.info("moved the earlier search to %s", folder.with_name(spare))


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Writes the log lines of kdnas to a file too. Hydra's jobs reset the root logger, not the logger `kdnas`."""
    handler = logging.FileHandler(path)
    handler.setFormatter(Lines("%Y-%m-%d %H:%M:%S"))
    handler.addFilter(is_shown)
    logger = logging.getLogger("kdnas")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
