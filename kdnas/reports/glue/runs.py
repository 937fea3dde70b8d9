"""Reads runs from `<folder>/<label>/<task>-<seed>`, where `python train.py -m +experiment=glue` leaves them."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from kdnas.base.errors import ConfigError
from kdnas.base.run_folder import RESULTS, SETTINGS, read_results


def read(folder: Path, tasks: Mapping[str, str]) -> pd.DataFrame:
    """Reads the runs of the tasks: columns `model`, `task`, `seed`, `folder`, `metric`, `score` (per cent).

    A finished run has a row for each of its metrics, an unfinished one a single row without metric and score. A
    ConfigError says that no run has finished, or that one lacks the metric that stands for its task in `tasks`.
    """
    if not tasks:
        raise ConfigError("tasks: must name the metric of at least one task")
    rows: list[dict[str, Any]] = []
    for run in sorted({path.parent for name in (SETTINGS, RESULTS) for path in folder.rglob(name)}):
        named = re.fullmatch(r"(.+)-(\d+)", run.name)
        if not named or named[1] not in tasks:
            continue
        task, model = named[1], run.parent.relative_to(folder).as_posix()
        scores = _metrics(run / RESULTS)
        if scores and tasks[task] not in scores:
            raise ConfigError(f"tasks.{task}={tasks[task]}: not a metric of {run}; must be one of {', '.join(scores)}")
        row = {"model": model, "task": task, "seed": int(named[2]), "folder": run}
        rows += [{**row, "metric": name, "score": 100 * value} for name, value in scores.items()]
        rows += [] if scores else [{**row, "metric": None, "score": math.nan}]
    frame = pd.DataFrame(rows, columns=["model", "task", "seed", "folder", "metric", "score"])
    if frame["score"].isna().all():
        raise ConfigError(
            f"folder={folder}: holds no finished run of {', '.join(tasks)}; "
            "must be where python train.py -m +experiment=glue has left some"
        )
    return frame


def _metrics(path: Path) -> dict[str, float]:
    """Reads a run's metrics; empty if the run has not finished, is damaged or has diverged."""
    try:
        metrics = read_results(path)[0]
    except ConfigError:
        return {}
    return metrics if all(map(math.isfinite, metrics.values())) else {}


def unfinished(runs: pd.DataFrame, tasks: Mapping[str, str]) -> list[str]:
    """Returns a line for each model that lacks a finished run of some task for one of its seeds."""
    lines = []
    for model, own in runs.groupby("model"):
        seeds = sorted(own["seed"].unique())
        finished = set(own.dropna(subset="score")[["task", "seed"]].itertuples(index=False, name=None))
        missing = []
        for task in tasks:
            open_seeds = [seed for seed in seeds if (task, seed) not in finished]
            missing += [task] if len(open_seeds) == len(seeds) else [f"{task}-{seed}" for seed in open_seeds]
        if missing:
            lines.append(f"{model} has not finished {', '.join(missing)}")
    return lines
