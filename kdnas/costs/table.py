"""The latency table: one JSON line for each measurement; the last line of a key counts."""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from kdnas.base.errors import ConfigError, is_number, require_switch
from kdnas.base.files import check_folder, make_folder
from kdnas.base.shared import shared
from kdnas.costs.cost import Latency
from kdnas.costs.disturbance import load
from kdnas.costs.measure import reliable


class LatencyTable:
    """Latencies by their keys (see `kdnas.costs.key`), shared by all searches that use the file.

    A `fresh` table finds only latencies that this process has added. Raises a ConfigError if it cannot be written.
    """

    def __init__(self, path: Path, fresh: bool = False) -> None:
        require_switch("fresh", fresh)
        self.path, self.fresh = path, fresh
        if path.is_dir():
            raise ConfigError.of("table", f"={path}: is a folder; must be a file, or not there")
        check_folder("table", path.parent)

    def find(self, key: dict[str, Any]) -> Latency | None:
        """Returns the latest latency of a key; None if the table holds none that is reliable."""
        if self.fresh and _text(key) not in self._added:
            return None
        rows = [row for row in read_table(self.path) if row["key"] == key and reliable(row["median"], row["spread"])]
        return Latency(rows[-1]["median"], rows[-1]["spread"]) if rows else None

    def add(self, key: dict[str, Any], latency: Latency) -> None:
        """Appends a latency, with the date and the host's load, unless it was measured on a busy host."""
        make_folder("table", self.path.parent)
        if latency.busy:
            return
        row = {"key": key, "median": latency.median, "spread": latency.spread}
        row |= {"date": datetime.now().astimezone().isoformat(timespec="seconds"), "load": round(load(), 2)}
        # A crash may have left an incomplete last line.
        cut = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a") as file:
            file.write("\n" * cut + json.dumps(row) + "\n")
        self._added.add(_text(key))

    @property
    def _added(self) -> set[str]:
        return shared("latencies added", str(self.path), set)


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
