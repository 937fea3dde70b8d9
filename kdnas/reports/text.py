"""The table of the best candidates as text, for Markdown and for a terminal."""

import io

import pandas as pd
from rich.console import Console
from rich.measure import Measurement

from kdnas.reports.cells import WIDTH, busy_marks, cells, grid, markdown
from kdnas.reports.notes import ARCHITECTURE, NO_CANDIDATE, notes
from kdnas.reports.results import Results
from kdnas.reports.table import HELD_OUT, table

LEFT = ("architecture", "on", "chosen\nby")  # the left-aligned columns


def as_text(results: Results) -> pd.DataFrame:
    """Formats the table as text: rounded, latencies as `3.21 ± 0.05`, unknown values as empty cells."""
    frame = table(results)
    text = pd.DataFrame(
        {
            "#": cells(frame["rank"], "{:.0f}"),
            "mini #": cells(frame["mini rank"], "{:.0f}"),
            "trial": cells(frame["trial"], "{:.0f}"),
            "architecture": frame["model"].where(frame["model"] != "candidate", frame["architecture"]),
            "params (M)": cells(frame["parameters (M)"], "{:.1f}"),
        },
        dtype=object,
    )
    for name in results.metric_names:
        text[f"full {name}"] = cells(frame[f"full {HELD_OUT}{name}"], "{:#.3g}")
    for name in results.metric_names:
        text[name] = cells(frame[f"{HELD_OUT}{name}"], "{:#.3g}")
    for device in results.devices:
        spread = cells(frame[f"spread {device} (ms)"], " ± {:.2f}")
        mark = busy_marks(frame, device)
        text[f"latency {device} (ms)"] = cells(frame[f"latency {device} (ms)"], "{:.2f}") + spread + mark
        text[f"speed-up {device}"] = cells(frame[f"speed-up {device}"], "{:.1f}x") + mark
    text["reward"] = cells(frame["reward"], "{:.4f}")
    text["full reward"] = cells(frame["full reward"], "{:.4f}")
    text["chosen by"] = frame["chosen by"].fillna("")
    text["episode"] = cells(frame["episode"], "{:.0f}")
    text["export"] = frame["export"].fillna("")
    return text


def as_markdown(results: Results) -> str:
    """Formats the table, without empty columns, and the notes on it in Markdown."""
    text = as_text(results)
    text = text[[name for name in text if any(text[name])]]
    rows = [markdown(text)] if len(text) else []
    parts = [*rows, ARCHITECTURE] if results.ranking else [NO_CANDIDATE, *rows]
    return "\n\n".join([f"# {results.name}", *parts, *notes(results)]) + "\n"


def drawn(results: Results, console: Console) -> str:
    """Draws the table with the columns that fit on a console; the report's files have all columns.

    Each device has a line within a candidate's row. On a narrow terminal columns are left out, and none is truncated.
    """
    columns = {name: column for name, column in _columns(results).items() if any(map(str.strip, column))}
    if not columns:
        return ""
    file = io.StringIO()
    width = console.width if console.is_terminal else WIDTH
    console = Console(file=file, width=1000, color_system=None)  # wide enough to measure any table
    spare = [name for name in _least_wanted(results) if name in columns]
    while spare and Measurement.get(console, console.options, grid(columns, LEFT)).maximum > width:
        del columns[spare.pop(0)]
    console.print(grid(columns, LEFT))
    return "\n".join([*file.getvalue().rstrip().splitlines(), ARCHITECTURE])


def _columns(results: Results) -> dict[str, list[str]]:
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
        **{_heading("full", name): list(text[f"full {name}"]) for name in results.metric_names},
        **{_heading("mini", name): list(text[name]) for name in results.metric_names},
        "on": ["\n".join(devices) if cells.strip() else "" for cells in stacked("latency {} (ms)")],
        "latency\n(ms)": stacked("latency {} (ms)"),
        "speed\nup": stacked("speed-up {}"),
        "full\nreward": list(text["full reward"]),
        "mini\nreward": list(text["reward"]),
        "chosen\nby": list(text["chosen by"]),
        "epi-\nsode": list(text["episode"]),
    }


def _heading(kind: str, name: str) -> str:
    return f"{kind}\n{name}".replace("_", "\n")


def _least_wanted(results: Results) -> list[str]:
    """Returns the headings of the columns that a narrow terminal leaves out, in this order."""
    first, *others = results.metric_names
    further = [_heading(kind, name) for name in reversed(others) for kind in ("mini", "full")]
    return [
        *("epi-\nsode", "trial", "chosen\nby", "full\nreward"),
        *further,
        *("mini\nreward", "on", "mini\n#", "params\n(M)"),
        *(_heading("mini", first), "speed\nup", _heading("full", first)),
    ]
