"""The GLUE table: means over seeds, averages over tasks, the comparison with the teacher, and as text."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from kdnas.reports.cells import busy_marks, cells, devices, speed_ups

MISSING = "–"
COLA = "cola"  # the task that small students are poor at, so that papers also average without it


def table(
    runs: pd.DataFrame, tasks: Mapping[str, str], costs: Mapping[str, Mapping[str, Any]], teacher: str | None
) -> pd.DataFrame:
    """Makes the table, a row a model, the teacher last; scores in per cent. Unknown values are NaN.

    Columns: `model`, `seeds` (their number), the cost with `speed-up DEVICE` (the teacher's latency over the model's);
    for each task its mean over the seeds, `TASK deviation` and `TASK seeds` (the number that have finished);
    `average` and `average without cola`, each with its deviation and number of seeds; `% of teacher`, likewise.

    A task counts once in an average, with its metric in `tasks`. An average is the mean of the tasks' means, and NaN
    if a task has no finished run. Its deviation is the deviation of the seeds' averages, over the seeds that have
    finished every task. Deviations are sample standard deviations: NaN for a single seed.

    Args:
        runs: as `kdnas.reports.glue.runs.read` returns them.
        tasks: for each task the metric that stands for it.
    """
    groups = {"average": list(tasks)}
    if COLA in tasks and len(tasks) > 1:
        groups["average without cola"] = [task for task in tasks if task != COLA]
    rows = [
        {"model": model, "seeds": own["seed"].nunique(), **costs.get(str(model), {}), **_scores(own, tasks, groups)}
        for model, own in runs.groupby("model")
    ]
    frame = pd.DataFrame(rows).set_index("model", drop=False).rename_axis(None)
    return (frame if teacher is None else _compared(frame, teacher, groups)).reset_index(drop=True)


def _scores(runs: pd.DataFrame, tasks: Mapping[str, str], groups: Mapping[str, list[str]]) -> dict[str, float]:
    deciding = runs[runs["metric"] == runs["task"].map(tasks)]
    scores = deciding.pivot(index="seed", columns="task", values="score").reindex(columns=list(tasks))
    row: dict[str, float] = {}
    for task in tasks:
        row |= _summary(task, scores[task].mean(), scores[task].dropna())
    for name, members in groups.items():
        averages = scores[members].dropna().mean(axis="columns")  # of the seeds that have finished every task
        row |= _summary(name, scores[members].mean().mean(skipna=False), averages)
    return row


def _summary(name: str, mean: float, seeds: pd.Series) -> dict[str, float]:
    return {name: mean, f"{name} deviation": seeds.std(), f"{name} seeds": len(seeds)}


def _compared(frame: pd.DataFrame, teacher: str, groups: Mapping[str, list[str]]) -> pd.DataFrame:
    for name in groups:
        frame[name.replace("average", "% of teacher")] = 100 * frame[name] / frame.at[teacher, name]
    latency = {device: frame.at[teacher, f"latency {device} (ms)"] for device in devices(frame)}
    for device, column in zip(latency, speed_ups(frame, latency).items(), strict=True):
        frame.insert(frame.columns.get_loc(f"spread {device} (ms)") + 1, *column)
    return frame.reindex([*frame.index.drop(teacher), teacher])


def metrics(runs: pd.DataFrame) -> pd.DataFrame:
    """Summarizes every metric: `model`, `task`, `metric`, `mean`, `deviation` and number of `seeds`."""
    scores = runs.dropna(subset="score").groupby(["model", "task", "metric"])["score"]
    return scores.agg(mean="mean", deviation="std", seeds="count").reset_index()


def as_text(frame: pd.DataFrame, tasks: Mapping[str, str], between: str = " ± ") -> pd.DataFrame:
    """Formats the rows as text, with `between` a mean and its deviation; a mean of too few seeds is marked."""
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
    """Formats the metrics (see `metrics`) that do not stand for a task; empty if there are none."""
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
