"""Prints the latency table: python -m kdnas.costs runs/latency.jsonl"""

import sys
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdnas.base.errors import ConfigError
from kdnas.costs.measure import reliable
from kdnas.costs.table import read_table
from kdnas.models.architecture import Architecture

MISSING = "–"
WIDTH = 160  # the width of the output in characters where it is not a terminal


def list_latencies(path: Path) -> None:
    """Prints the latest latency of each key in the table, a line each; raises a ConfigError if there is none."""
    latest = {str(row["key"]): row for row in read_table(path)}
    if not latest:
        raise ConfigError(f"{path}: must be a table of latencies, as runs/latency.jsonl; holds none")
    rows = sorted(map(cells, latest.values()), key=lambda row: (row["target"], row["input"], row["model"]))
    drawn = Table(*rows[0], box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        drawn.add_row(*map(Text, row.values()))
    console = Console()
    (console if console.is_terminal else Console(width=WIDTH)).print(drawn)


def cells(row: dict[str, Any]) -> dict[str, str]:
    """Returns the texts of one line by column; lines of earlier versions lack some values."""
    key = {name: str(value) for name, value in row["key"].items()}
    versions = row["key"].get("versions", {})

    def text(form: str, *names: str) -> str:
        return form.format(*(key.get(name, MISSING) for name in names))

    median, spread = row["median"], row["spread"]
    unreliable = "" if reliable(median, spread) else " (wide: measured again when it is needed)"
    shape = ", ".join(key.get(name, MISSING) for name in Architecture.__dataclass_fields__)
    threads = key.get("threads", MISSING)
    return {
        "model": f"{key.get('model_type', MISSING)} [{shape}]",
        "target": text("{}, {}", "target", "device"),
        "input": text("{}x{} {}", "batch_size", "length", "dtype") + f", {threads} thread{'s' * (threads != '1')}",
        "latency (ms)": f"{median:.2f} ± {spread:.2f}{unreliable}",
        "measured": str(row.get("date", MISSING)).replace("T", " ")[:16],
        "load": str(row.get("load", MISSING)),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()) or MISSING,
    }


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m kdnas.costs <table, as runs/latency.jsonl>")
    try:
        list_latencies(Path(sys.argv[1]))
    except ConfigError as error:
        sys.exit(f"error: {error}")
