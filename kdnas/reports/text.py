"""The table of the best candidates as text, for Markdown and for a terminal."""

from __future__ import annotations

import io

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from kdnas.reports.notes import ARCHITECTURE, BUSY
from kdnas.reports.results import Results
from kdnas.reports.table import HELD_OUT, table

WIDTH = 120
"""The width of the table in characters where the output is not a terminal."""
LEFT = ("architecture", "on", "chosen\nby")
"""The left-aligned columns."""


def as_text(results: Results) -> pd.DataFrame:
    """Formats the table as text: rounded, latencies as `3.21 ± 0.05`, unknown values as empty cells."""
    frame = table(results)
    text = pd.DataFrame(
        {
            "#": _format(frame["rank"], "{:.0f}"),
            "mini #": _format(frame["mini rank"], "{:.0f}"),
            "trial": _format(frame["trial"], "{:.0f}"),
            "architecture": frame["model"].where(frame["model"] != "candidate", frame["architecture"]),
            "params (M)": _format(frame["parameters (M)"], "{:.1f}"),
        },
        dtype=object,
    )
    for name in results.figures:
        text[f"full {name}"] = _format(frame[f"full {HELD_OUT}{name}"], "{:#.3g}")
    for name in results.figures:
        text[name] = _format(frame[f"{HELD_OUT}{name}"], "{:#.3g}")
    for device in results.devices:
        spread = _format(frame[f"spread {device} (ms)"], " ± {:.2f}")
        mark = frame[f"busy {device}"].map(lambda busy: BUSY if busy is True else "")
        text[f"latency {device} (ms)"] = _format(frame[f"latency {device} (ms)"], "{:.2f}") + spread + mark
        text[f"speed-up {device}"] = _format(frame[f"speed-up {device}"], "{:.1f}x") + mark
    text["reward"] = _format(frame["reward"], "{:.4f}")
    text["full reward"] = _format(frame["full reward"], "{:.4f}")
    text["chosen by"] = frame["chosen by"].fillna("")
    text["episode"] = _format(frame["episode"], "{:.0f}")
    text["export"] = frame["export"].fillna("")
    return text


def _format(values: pd.Series, form: str) -> pd.Series:
    return values.map(lambda value: "" if pd.isna(value) else form.format(value)).astype(object)


def drawn(results: Results, console: Console) -> str:
    """Draws the table with the columns that fit on a console; the report's files have all columns.

    Each device has a line within a candidate's row. On a narrow terminal columns are left out, and none is truncated.
    """
    columns = {name: cells for name, cells in _columns(results).items() if any(map(str.strip, cells))}
    if not columns:
        return ""
    file = io.StringIO()
    width = console.width if console.is_terminal else WIDTH
    console = Console(file=file, width=1000, color_system=None)  # wide enough to measure any table
    spare = [name for name in _least_wanted(results) if name in columns]
    while spare and Measurement.get(console, console.options, _drawn(columns)).maximum > width:
        del columns[spare.pop(0)]
    console.print(_drawn(columns))
    return "\n".join([*file.getvalue().rstrip().splitlines(), ARCHITECTURE])


def _columns(results: Results) -> dict[str, list[str]]:
    """Returns the cells of each column, by its heading."""
    text, devices = as_text(results), results.devices

    def stacked(form: str) -> list[str]:
        each = (text[form.format(device)] for device in devices)
        return ["\n".join(lines) for lines in zip(*each, strict=True)]

    return {
        "#": list(text["#"]),
        "mini\n#": list(text["mini #"]),
        "trial": list(text["trial"]),
        "architecture": [cell.replace(", ", ",").replace("random,", "random, ") for cell in text["architecture"]],
        "params\n(M)": list(text["params (M)"]),
        **{_heading("full", name): list(text[f"full {name}"]) for name in results.figures},
        **{_heading("mini", name): list(text[name]) for name in results.figures},
        "on": ["\n".join(devices) if cells.strip() else "" for cells in stacked("latency {} (ms)")],
        "latency\n(ms)": stacked("latency {} (ms)"),
        "speed\nup": stacked("speed-up {}"),
        "full\nreward": list(text["full reward"]),
        "mini\nreward": list(text["reward"]),
        "chosen\nby": list(text["chosen by"]),
        "epi-\nsode": list(text["episode"]),
    }


def _heading(stage: str, name: str) -> str:
    return f"{stage}\n{name}".replace("_", "\n")


def _least_wanted(results: Results) -> list[str]:
    """Returns the headings of the columns that a narrow terminal leaves out, in this order."""
    first, *others = results.figures
    further = [_heading(stage, name) for name in reversed(others) for stage in ("mini", "full")]
    return [
        *("epi-\nsode", "trial", "chosen\nby", "full\nreward"),
        *further,
        *(
            "mini\nreward",
            "on",
            "mini\n#",
            "params\n(M)",
            _heading("mini", first),
            "speed\nup",
            _heading("full", first),
        ),
    ]


def _drawn(columns: dict[str, list[str]]) -> Table:
    grid = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in columns:
        grid.add_column(name, justify="left" if name in LEFT else "right", no_wrap=True)
    for cells in zip(*columns.values(), strict=True):
        grid.add_row(*map(Text, cells))
    return grid
