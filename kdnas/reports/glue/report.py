"""Prints the GLUE table of finished runs and writes it: `python evaluate.py glue`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console
from transformers import PreTrainedConfig

from kdnas.base.errors import ConfigError, mounted
from kdnas.costs import CostModel
from kdnas.models.counting import count_parameters
from kdnas.models.loading import load_config
from kdnas.reports.cells import BUSY, BUSY_NOTE, WIDTH, cost_columns, devices, grid, markdown
from kdnas.reports.files import write_files
from kdnas.reports.glue.runs import read, unfinished
from kdnas.reports.glue.table import as_text, convention, further_metrics, metrics, table
from kdnas.reports.plots import score_plot


def report(
    folder: str,
    output: str,
    tasks: Mapping[str, str | None],
    teacher: str | None = None,
    latency: CostModel | None = None,
) -> list[Path]:
    """Reads the runs in `folder`, prints the table, and writes it to `output`; returns the paths of the files.

    Args:
        tasks: for each task the metric that stands for it; None leaves a task out.
        teacher: the label of the teacher's runs; None for no comparison.
        latency: measures the models; None leaves latencies and FLOPs out.

    Raises:
        ConfigError: no run has finished, or the runs do not have the teacher or the metric.
    """
    scored = {task: metric for task, metric in tasks.items() if metric is not None}
    runs = read(Path(folder), scored)
    labels, label = sorted(set(runs["model"])), None if teacher is None else str(teacher)
    if label is not None and label not in labels:
        raise ConfigError(f"teacher.label={label}: must be one of {', '.join(labels)}")
    costs = {str(model): model_cost(folders, latency) for model, folders in runs.groupby("model")["folder"]}
    frame, every = table(runs, scored, costs, label), metrics(runs)
    notes = [convention(scored), *unfinished(runs, scored)]
    if any(BUSY in cell for cell in map(str, as_text(frame, scored).to_numpy().flat)):
        notes.append(BUSY_NOTE)
    show([as_text(frame, scored, "\n± "), further_metrics(every, scored)], notes)
    written = write_files("output", Path(output), contents(frame, every, scored, label, notes))
    print("\n".join(["", "Written:", *(f"  {path}" for path in written)]))
    return written


def model_cost(runs: Iterable[Path], latency: CostModel | None) -> dict[str, Any]:
    """Returns the columns of the cost of the encoder that the runs have exported; empty if there is none."""
    exported = next((run / "model" for run in runs if (run / "model/config.json").is_file()), None)
    if exported is None:
        return {}
    config: PreTrainedConfig = load_config(str(exported), "folder")
    if latency is None:
        return {"parameters (M)": count_parameters(config) / 1e6}
    with mounted("latency"):
        return cost_columns(latency.cost(config))


def contents(
    frame: pd.DataFrame, every: pd.DataFrame, tasks: Mapping[str, str], teacher: str | None, notes: Iterable[str]
) -> dict[str, pd.DataFrame | str | Figure | None]:
    """Returns the contents of the files by name; the plot only if a model has both an average and a latency."""
    texts = [markdown(text) for text in (as_text(frame, tasks), further_metrics(every, tasks)) if len(text)]
    title = f"GLUE, average of {len(tasks)} task{'s' * (len(tasks) > 1)}"
    return {
        "table.csv": frame,
        "metrics.csv": every,
        "table.md": "\n\n".join(["# GLUE", *texts, *notes]) + "\n",
        "tradeoff.png": score_plot(frame, devices(frame), teacher, title),
    }


def show(tables: Iterable[pd.DataFrame], notes: Iterable[str]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    for text in tables:
        if len(text):
            columns = {name.replace(" ", "\n"): list(text[name]) for name in text}
            console.print(grid(columns, ["model"], wraps=True))
            console.print()
    for note in notes:
        console.print(note, highlight=False, markup=False)
