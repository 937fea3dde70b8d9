"""Tables for people: numbers as text, Markdown, and grids for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

WIDTH = 120
"""The width of a table in characters where the output is not a terminal."""
BUSY = "*"
"""The mark of latencies that were measured on a busy host."""
BUSY_NOTE = f"{BUSY} measured on a busy host: not to be relied on."


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
    """Makes a table for a terminal.

    Args:
        columns: the cells of each column by its heading.
        left: the headings of the left-aligned columns.
        wraps: whether cells that do not fit are wrapped.
    """
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right", no_wrap=not wraps)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, row))
    return table
