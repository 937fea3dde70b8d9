"""The file that a search's studies are kept in: Optuna's append-only journal, proof against writes cut short."""

import os
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from kdnas.base.errors import ConfigError

JOURNAL = "study.journal"
BLOCK = 1 << 12  # the number of bytes that are read at once


def open_storage(folder: Path) -> BaseStorage:
    """Opens the journal of a search folder, made if absent; raises a ConfigError if it is damaged before its end."""
    path = folder / JOURNAL
    try:
        return JournalStorage(WholeLines(os.fspath(path)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"search.dir={folder}: {JOURNAL} is damaged ({type(error).__name__}: {error}); "
            "must be as Optuna wrote it: put back a copy, or use another search.dir"
        ) from error


class WholeLines(JournalFileBackend):
    """Optuna's file backend, which ignores a last line that was cut short, but would append the next line to it."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self._lock.acquire()
        try:
            self._mend()
        finally:
            self._lock.release()
        super().append_logs(logs)

    def _mend(self) -> None:
        """Removes a last line without an end: the process that wrote it has not relied on it yet."""
        with open(self._file_path, "r+b") as file:
            end = file.seek(0, os.SEEK_END)
            tail = b""
            while end and b"\n" not in tail:
                start = max(0, end - BLOCK)
                file.seek(start)
                tail, end = file.read(end - start), start
            whole = end + tail.rfind(b"\n") + 1
            if whole < file.seek(0, os.SEEK_END):
                file.truncate(whole)
