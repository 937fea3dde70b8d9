"""GLUE results as papers print them: a row a model, a column a task, averages over tasks, deviations over seeds.

Runs are read from `<folder>/<label>/<task>-<seed>`, where `python train.py -m +experiment=glue` leaves them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedConfig

from kdnas.base.config import instantiate
from kdnas.base.errors import ConfigError, mounted
from kdnas.base.files import make_folder, whole
from kdnas.base.run_folder import RESULTS, SETTINGS, read_results
from kdnas.costs import CostModel
from kdnas.models.counting import count_parameters
from kdnas.models.loading import load_config
from kdnas.reports.notes import BUSY
from kdnas.reports.plots import score_plot

COLA = "cola"
"""The task that small students are poor at, so that papers also average without it."""
MISSING = "–"
WIDTH = 120
"""The width of the output in characters where it is not a terminal."""


def report(cfg: DictConfig) -> list[Path]:
    """Reads the runs, prints the table and writes it; returns the paths of the files.

    Raises:
        ConfigError: no run has finished, or the runs do not have the teacher or the metric.
    """
    folder, output = Path(cfg.folder), Path(cfg.output)
    tasks = {task: metric for task, metric in cfg.tasks.items() if metric is not None}
    runs = read(folder, tasks)
    teacher = None if cfg.teacher.label is None else str(cfg.teacher.label)
    if teacher is not None and teacher not in set(runs["model"]):
        raise ConfigError(f"teacher.label={teacher}: must be one of {', '.join(sorted(set(runs['model'])))}")
    cost_model = instantiate(cfg.latency) if "latency" in cfg else None
    costs = {model: cost(folders, cost_model) for model, folders in runs.groupby("model")["folder"]}
    frame, every = table(runs, tasks, costs, teacher), metrics(runs)
    notes = [convention(tasks), *missing(runs, tasks)]
    if any(BUSY in cell for row in as_text(frame, tasks).itertuples(index=False) for cell in map(str, row)):
        notes.append(f"{BUSY} measured on a busy host: not to be relied on.")
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    draw(console, as_text(frame, tasks, "\n± "))
    draw(console, others(every, tasks))
    for note in notes:
        console.print(note, highlight=False, markup=False)
    written = write(output, frame, every, tasks, teacher, notes)
    console.print("\n".join(["", "Written:", *(f"  {path}" for path in written)]), soft_wrap=True, highlight=False)
    return written


# -- reading the runs


def read(folder: Path, tasks: Mapping[str, str]) -> pd.DataFrame:
    """Reads the runs of the tasks: columns `model`, `task`, `seed`, `folder`, `metric`, `score` (per cent).

    A finished run has a row for each of its metrics, an unfinished one a single row without metric and score.
    """
    if not tasks:
        raise ConfigError("tasks: must name the metric of at least one task")
    rows: list[dict[str, Any]] = []
    for run in sorted({path.parent for name in (SETTINGS, RESULTS) for path in folder.rglob(name)}):
        named = re.fullmatch(r"(.+)-(\d+)", run.name)
        if not named or named[1] not in tasks:
            continue
        task, model = named[1], run.parent.relative_to(folder).as_posix()
        scores = _results(run / RESULTS)
        if scores and tasks[task] not in scores:
            raise ConfigError(f"tasks.{task}={tasks[task]}: not a metric of {run}; must be one of {', '.join(scores)}")
        about = {"model": model, "task": task, "seed": int(named[2]), "folder": run}
        rows += [{**about, "metric": name, "score": 100 * value} for name, value in scores.items()]
        rows += [] if scores else [{**about, "metric": None, "score": math.nan}]
    frame = pd.DataFrame(rows, columns=["model", "task", "seed", "folder", "metric", "score"])
    if frame["score"].isna().all():
        raise ConfigError(
            f"folder={folder}: holds no finished run of {', '.join(tasks)}; "
            "must be where python train.py -m +experiment=glue has left some"
        )
    return frame


def _results(path: Path) -> dict[str, float]:
    """Reads a run's metrics; empty if the run has not finished, is damaged or has diverged."""
    try:
        figures = read_results(path)[0]
    except ConfigError:
        return {}
    return figures if all(map(math.isfinite, figures.values())) else {}


def cost(folders: Iterable[Path], cost_model: CostModel | None) -> dict[str, float]:
    """Returns parameters, FLOPs and latencies of the encoder that the runs have exported; empty if there is none."""
    exported = next((run / "model" for run in folders if (run / "model/config.json").is_file()), None)
    if exported is None:
        return {}
    config: PreTrainedConfig = load_config(str(exported), "folder")
    if cost_model is None:
        return {"parameters (M)": count_parameters(config) / 1e6}
    with mounted("latency"):
        measured = cost_model.cost(config)
    row = {"parameters (M)": measured.parameters / 1e6, "FLOPs (G)": measured.flops / 1e9}
    for device, latency in measured.latency.items():
        row |= {f"latency {device} (ms)": latency.median, f"spread {device} (ms)": latency.spread}
        row |= {f"busy {device}": latency.busy}
    return row


# -- the table


def table(
    runs: pd.DataFrame, tasks: Mapping[str, str], costs: Mapping[str, Mapping[str, float]], teacher: str | None
) -> pd.DataFrame:
    """Makes the table, a row a model, the teacher last; scores in per cent. Unknown values are NaN.

    Columns: `model`, `seeds` (their number), the columns of `cost` with `speed-up DEVICE` (the teacher's latency over
    the model's); for each task its mean over the seeds, `TASK deviation` and `TASK seeds` (the number that have
    finished); `average` and `average without cola`, each with its deviation and number of seeds; `% of teacher`,
    likewise.

    A task counts once in an average, with its metric in `tasks`. An average is the mean of the tasks' means, and NaN
    if a task has no finished run. Its deviation is the deviation of the seeds' averages, over the seeds that have
    finished every task. Deviations are sample standard deviations: NaN for a single seed.
    """
    groups = {"average": list(tasks)}
    if COLA in tasks and len(tasks) > 1:
        groups["average without cola"] = [task for task in tasks if task != COLA]
    rows = []
    for model, own in runs.groupby("model"):
        counted = own[own["metric"] == own["task"].map(tasks)]
        seeds = counted.pivot(index="seed", columns="task", values="score").reindex(columns=list(tasks))
        row: dict[str, Any] = {"model": model, "seeds": own["seed"].nunique(), **costs.get(str(model), {})}
        for task in tasks:
            row |= _summary(task, seeds[task].mean(), seeds[task].dropna())
        for name, members in groups.items():
            whole = seeds[members].dropna().mean(axis="columns")
            row |= _summary(name, seeds[members].mean().mean(skipna=False), whole)
        rows.append(row)
    frame = pd.DataFrame(rows).set_index("model", drop=False).rename_axis(None)
    if teacher is not None:
        for name in groups:
            frame[name.replace("average", "% of teacher")] = 100 * frame[name] / frame.at[teacher, name]
        for device in devices(frame):
            faster = frame.at[teacher, f"latency {device} (ms)"] / frame[f"latency {device} (ms)"]
            frame.insert(frame.columns.get_loc(f"spread {device} (ms)") + 1, f"speed-up {device}", faster)
        frame = frame.reindex([*frame.index.drop(teacher), teacher])
    return frame.reset_index(drop=True)


def _summary(name: str, mean: float, seeds: pd.Series) -> dict[str, float]:
    return {name: mean, f"{name} deviation": seeds.std(), f"{name} seeds": len(seeds)}


def devices(frame: pd.DataFrame) -> list[str]:
    return [name.split()[1] for name in frame.columns if name.startswith("latency ")]


def metrics(runs: pd.DataFrame) -> pd.DataFrame:
    """Summarizes every metric: `model`, `task`, `metric`, `mean`, `deviation` and number of `seeds`."""
    scores = runs.dropna(subset="score").groupby(["model", "task", "metric"])["score"]
    return scores.agg(mean="mean", deviation="std", seeds="count").reset_index()


def missing(runs: pd.DataFrame, tasks: Mapping[str, str]) -> list[str]:
    """Returns a line for each model that lacks a finished run of some task for one of its seeds."""
    lines = []
    for model, own in runs.groupby("model"):
        seeds = sorted(own["seed"].unique())
        done = set(own.dropna(subset="score")[["task", "seed"]].itertuples(index=False, name=None))
        lacking = []
        for task in tasks:
            open_seeds = [seed for seed in seeds if (task, seed) not in done]
            lacking += [task] if len(open_seeds) == len(seeds) else [f"{task}-{seed}" for seed in open_seeds]
        if lacking:
            lines.append(f"{model} has not finished {', '.join(lacking)}")
    return lines


def convention(tasks: Mapping[str, str]) -> str:
    named = ", ".join(f"{task} {metric}" for task, metric in tasks.items())
    return f"Per cent on the development set, mean ± deviation over seeds. Averages are of {named}."


# -- the table as text


def as_text(frame: pd.DataFrame, tasks: Mapping[str, str], between: str = " ± ") -> pd.DataFrame:
    """Formats the rows as text; a mean of fewer seeds than the model has is marked."""

    def cells(form: str, name: str) -> list[str]:
        return [MISSING if pd.isna(value) else form.format(value) for value in frame.get(name, [math.nan] * len(frame))]

    def scores(name: str) -> list[str]:
        columns = (frame[name], frame[f"{name} deviation"], frame[f"{name} seeds"], frame["seeds"])
        return [_score(*values, between) for values in zip(*columns, strict=True)]

    text = {"model": list(frame["model"]), "params (M)": cells("{:.1f}", "parameters (M)")}
    for device in devices(frame):
        marks = [BUSY if busy is True else "" for busy in frame.get(f"busy {device}", [False] * len(frame))]
        latencies = cells("{:.2f}", f"latency {device} (ms)")
        text[f"{device} (ms)"] = [cell + mark for cell, mark in zip(latencies, marks, strict=True)]
        if f"speed-up {device}" in frame:
            text["speed-up" if len(devices(frame)) == 1 else f"speed-up {device}"] = cells(
                "{:.1f}x", f"speed-up {device}"
            )
    text |= {task: scores(task) for task in tasks}
    for name in ("average", "average without cola"):
        if name in frame:
            text[name] = scores(name)
    for name in ("% of teacher", "% of teacher without cola"):
        if name in frame:
            text[name] = cells("{:.1f}", name)
    return pd.DataFrame(text, dtype=object)


def _score(mean: float, deviation: float, seeds: float, of: float, between: str = " ± ") -> str:
    if pd.isna(mean):
        return MISSING
    spread = "" if pd.isna(deviation) else f"{between}{deviation:.1f}"
    few = "" if seeds == of else f"{' ' if between == ' ± ' else chr(10)}({seeds:.0f} of {of:.0f})"
    return f"{mean:.1f}{spread}{few}"


def others(every: pd.DataFrame, tasks: Mapping[str, str]) -> pd.DataFrame:
    """Formats the metrics that the table leaves out; empty if there are none."""
    rest = every[every["metric"] != every["task"].map(tasks)]
    if rest.empty:
        return pd.DataFrame()
    names = rest["task"] + " " + rest["metric"]
    cells = [
        _score(*values, of=values[2]) for values in zip(rest["mean"], rest["deviation"], rest["seeds"], strict=True)
    ]
    wide = pd.DataFrame({"model": rest["model"], "name": names, "cell": cells})
    wide = wide.pivot(index="model", columns="name", values="cell").fillna(MISSING)
    ordered = sorted(wide.columns, key=lambda name: list(tasks).index(name.split()[0]))
    return wide[ordered].rename_axis(columns=None).reset_index()


def draw(console: Console, text: pd.DataFrame) -> None:
    if text.empty:
        return
    drawn = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in text:
        drawn.add_column(name.replace(" ", "\n"), justify="left" if name == "model" else "right")
    for cells in text.itertuples(index=False):
        drawn.add_row(*map(Text, cells))
    console.print(drawn)
    console.print()


# -- the files


def write(
    folder: Path,
    frame: pd.DataFrame,
    every: pd.DataFrame,
    tasks: Mapping[str, str],
    teacher: str | None,
    notes: Iterable[str],
) -> list[Path]:
    """Writes `table.csv`, `metrics.csv`, `table.md` and, if a model has both average and latency, `tradeoff.png`."""
    figure = score_plot(frame, devices(frame), teacher, f"GLUE, average of {len(tasks)} task{'s' * (len(tasks) > 1)}")
    make_folder("output", folder)
    for name, rows in (("table.csv", frame), ("metrics.csv", every)):
        with whole(folder / name) as path:
            rows.to_csv(path, index=False)
    texts = (as_text(frame, tasks), others(every, tasks))
    parts = [text.to_markdown(index=False, disable_numparse=True) for text in texts if len(text)]
    with whole(folder / "table.md") as path:
        path.write_text("\n\n".join(["# GLUE", *parts, *notes]) + "\n", encoding="utf-8")
    plot = folder / "tradeoff.png"
    if figure is None:
        plot.unlink(missing_ok=True)
    else:
        with whole(plot) as path:
            figure.savefig(path, format="png", dpi=figure.dpi)
    return [*(folder / name for name in ("table.csv", "metrics.csv", "table.md")), *([plot] if figure else [])]
