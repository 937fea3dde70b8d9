"""The GLUE table as text, for Markdown and for a terminal."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from kdnas.reports.cells import busy_marks, cells
from kdnas.reports.costs import devices

MISSING = "–"


def as_text(frame: pd.DataFrame, tasks: Mapping[str, str], between: str = " ± ") -> pd.DataFrame:
    """Formats the rows as text; a mean of fewer seeds than the model has is marked.

    Args:
        between: the text between a mean and its deviation; with a line break, both have a line of their own.
    """
    text = {"model": frame["model"]}
    if "parameters (M)" in frame:
        text["params (M)"] = cells(frame["parameters (M)"], "{:.1f}", MISSING)
    for device in devices(frame):
        text[f"{device} (ms)"] = cells(frame[f"latency {device} (ms)"], "{:.2f}", MISSING) + busy_marks(frame, device)
        if f"speed-up {device}" in frame:
            name = "speed-up" if len(devices(frame)) == 1 else f"speed-up {device}"
            text[name] = cells(frame[f"speed-up {device}"], "{:.1f}x", MISSING)
    for name in (*tasks, "average", "average without cola"):
        if name in frame:
            columns = (frame[name], frame[f"{name} deviation"], frame[f"{name} seeds"], frame["seeds"])
            text[name] = pd.Series([_score(*values, between) for values in zip(*columns, strict=True)], frame.index)
    for name in ("% of teacher", "% of teacher without cola"):
        if name in frame:
            text[name] = cells(frame[name], "{:.1f}", MISSING)
    return pd.DataFrame(text, dtype=object)


def _score(mean: float, deviation: float, seeds: float, of: float, between: str = " ± ") -> str:
    """Formats a mean with its deviation and, if not all seeds have finished, their number: `61.2 ± 0.4 (2 of 3)`."""
    if pd.isna(mean):
        return MISSING
    spread = "" if pd.isna(deviation) else f"{between}{deviation:.1f}"
    few = "" if seeds == of else f"{chr(10) if chr(10) in between else ' '}({seeds:.0f} of {of:.0f})"
    return f"{mean:.1f}{spread}{few}"


def further_metrics(every: pd.DataFrame, tasks: Mapping[str, str]) -> pd.DataFrame:
    """Formats the metrics that do not stand for a task; empty if there are none.

    Args:
        every: as `kdnas.reports.glue.table.metrics` returns them.
    """
    rest = every[every["metric"] != every["task"].map(tasks)]
    if rest.empty:
        return pd.DataFrame()
    scores = [
        _score(mean, std, n, n) for mean, std, n in zip(rest["mean"], rest["deviation"], rest["seeds"], strict=True)
    ]
    wide = pd.DataFrame({"model": rest["model"], "name": rest["task"] + " " + rest["metric"], "score": scores})
    wide = wide.pivot(index="model", columns="name", values="score").fillna(MISSING)
    ordered = sorted(wide.columns, key=lambda name: list(tasks).index(name.split()[0]))
    return wide[ordered].rename_axis(columns=None).reset_index()


def convention(tasks: Mapping[str, str]) -> str:
    """Returns the note on what the scores and averages are."""
    named = ", ".join(f"{task} {metric}" for task, metric in tasks.items())
    return f"Per cent on the development set, mean ± deviation over seeds. Averages are of {named}."
