"""Common to all tables: the columns of a cost, numbers as text, Markdown, and grids for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from kdnas.costs.cost import Cost

WIDTH = 120  # the width of a table in characters where the output is not a terminal
BUSY = "*"  # the mark of latencies that were measured on a busy host
BUSY_NOTE = f"{BUSY} measured on a busy host: not to be relied on."


def cost_columns(cost: Cost | None) -> dict[str, Any]:
    """Returns the values of a model's cost by column; none if the cost is not known.

    `latency DEVICE (ms)` is the median and `spread DEVICE (ms)` half the width of the middle 90 %; `busy DEVICE` is
    whether the host was busy, so that the latency is unreliable.
    """
    if cost is None:
        return {}
    row: dict[str, Any] = {"parameters (M)": cost.parameters / 1e6, "FLOPs (G)": cost.flops / 1e9}
    for device, latency in cost.latency.items():
        row[f"latency {device} (ms)"] = latency.median
        row[f"spread {device} (ms)"] = latency.spread
        row[f"busy {device}"] = latency.busy
    return row


def latency_columns(device: str) -> list[str]:
    return [f"latency {device} (ms)", f"spread {device} (ms)", f"busy {device}", f"speed-up {device}"]


def devices(frame: pd.DataFrame) -> list[str]:
    """Returns the devices whose latencies a table has."""
    return [name.removeprefix("latency ").removesuffix(" (ms)") for name in frame if str(name).startswith("latency ")]


def speed_ups(frame: pd.DataFrame, teacher: Mapping[str, float]) -> dict[str, pd.Series]:
    """Returns a column `speed-up DEVICE` for each device of the teacher: its latency in ms over the row's."""
    return {f"speed-up {device}": median / frame[f"latency {device} (ms)"] for device, median in teacher.items()}


def cells(values: pd.Series, form: str, missing: str = "") -> pd.Series:
    """Formats numbers as text, as by `"{:.2f}"`; `missing` stands for NaN."""
    return values.map(lambda value: missing if pd.isna(value) else form.format(value)).astype(object)


def busy_marks(frame: pd.DataFrame, device: str) -> pd.Series:
    """Returns the mark, or an empty text, for each latency on a device."""
    busy = frame.get(f"busy {device}", pd.Series(False, frame.index))
    return busy.map(lambda value: BUSY if value is True else "").astype(object)


def markdown(text: pd.DataFrame) -> str:
    """Formats a table of texts in Markdown."""
    return text.to_markdown(index=False, disable_numparse=True)


def grid(columns: Mapping[str, Sequence[str]], left: Sequence[str], wraps: bool = False) -> Table:
    """Makes a table for a terminal from the cells of each column by its heading; `left` are left-aligned columns."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right", no_wrap=not wraps)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, row))
    return table
