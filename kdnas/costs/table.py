"""The latency table: one JSON line for each measurement; the last line of a key counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from kdnas.base.errors import ConfigError, is_number, require, require_switch
from kdnas.base.files import check_folder, make_folder
from kdnas.base.host import QuietHost
from kdnas.base.shared import shared
from kdnas.costs.cost import Latency
from kdnas.costs.key import table_key
from kdnas.costs.measure import Protocol, measure_config, reliable
from kdnas.costs.patience import Patience, load


class LatencyTable:
    """Latencies by their keys (see `kdnas.costs.key`), shared by all searches that use the file.

    A latency that was measured on a busy host is returned, marked as such, and not stored.

    Args:
        path: the file; made when absent.
        patience: seconds that a process waits for a quiet host.
        fresh: whether to measure anew, once in a process, latencies that the table holds.
    """

    def __init__(self, path: Path, patience: float = 60.0, fresh: bool = False) -> None:
        require(is_number(patience) and patience >= 0, "latency.patience", patience, "a number of seconds from 0")
        require_switch("latency.fresh", fresh)
        self.path, self.patience, self.fresh = path, patience, fresh
        if path.is_dir():
            raise ConfigError(f"latency.table={path}: is a folder; must be a file, or not there")
        check_folder("latency.table", path.parent)
        self.host = QuietHost()

    def latency(self, config: PreTrainedConfig, accelerator: str, protocol: Protocol) -> Latency:
        """Looks a latency up or, if the table lacks it, measures it while the host is quiet and stores it."""
        key = self.key(config, accelerator, protocol)
        if found := self._find(key):
            return found
        patience = shared("patience", None, Patience)
        while True:
            with self.host.quiet():
                found = self._find(key) or self._measure(key, config, accelerator, protocol)
            if not found.busy:
                patience.restart()
                return found
            # Waits without the lock, so that this user's other processes go on meanwhile.
            if not patience.wait(self.patience):
                return found

    @staticmethod
    def key(config: PreTrainedConfig, accelerator: str, protocol: Protocol) -> dict[str, Any]:
        return table_key(config, accelerator, protocol)

    def _find(self, key: dict[str, Any]) -> Latency | None:
        if self.fresh and _text(key) not in self._measured:
            return None
        rows = [row for row in read_table(self.path) if row["key"] == key and reliable(row["median"], row["spread"])]
        return Latency(rows[-1]["median"], rows[-1]["spread"]) if rows else None

    def _measure(self, key: dict[str, Any], config: PreTrainedConfig, accelerator: str, protocol: Protocol) -> Latency:
        make_folder("latency.table", self.path.parent)
        measured = measure_config(config, accelerator, protocol)
        if measured.busy:
            return measured
        row = {"key": key, "median": measured.median, "spread": measured.spread}
        row |= {"date": datetime.now().astimezone().isoformat(timespec="seconds"), "load": round(load(), 2)}
        # A crash may have left an incomplete last line.
        cut = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a") as file:
            file.write("\n" * cut + json.dumps(row) + "\n")
        self._measured.add(_text(key))
        return measured

    @property
    def _measured(self) -> set[str]:
        """The keys that this process has measured."""
        return shared("latencies measured", str(self.path), set)


def read_table(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of a table that hold a latency, with `key`, `median`, `spread` and, in newer ones, `date`."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # incomplete after a crash: the latency is measured again
        known = isinstance(row, dict) and isinstance(row.get("key"), dict)
        if known and _is_latency(row.get("median"), row.get("spread")):
            yield row


def _is_latency(median: Any, spread: Any) -> bool:
    return is_number(median) and is_number(spread) and median > 0 and spread >= 0


def _text(key: dict[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)
