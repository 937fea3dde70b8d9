"""The results as tables: the best candidates with the teacher, and all candidates."""

import math
import os
from pathlib import Path
from typing import Any

import pandas as pd
from optuna.study import get_all_study_names
from optuna.trial import FrozenTrial

from kdnas.base.errors import require
from kdnas.base.metrics import quality
from kdnas.models.architecture import Architecture
from kdnas.reports.cells import cost_columns, latency_columns, speed_ups
from kdnas.reports.results import Results
from kdnas.search.journal import JOURNAL, open_storage
from kdnas.search.ranking import Ranked
from kdnas.search.study import Study

HELD_OUT = "held-out "
TEXTS = ("model", "state", "reason", "architecture", "hidden_act", "chosen by", "export", "precision")
"""The columns that hold text."""
WHOLE = ("trial", "episode", "num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size")
"""The columns that hold integers, besides the ranks."""


def table(results: Results) -> pd.DataFrame:
    """Makes the table of the best candidates and all finalists, followed by the teacher, chance and random choices.

    Columns: `model` (candidate, teacher, chance or random), `rank` (the finalists' full results decide), `mini rank`
    (by the rewards of mini-KD), `trial`, `architecture`, `parameters (M)`, `held-out accuracy` and the other held-out
    metrics, the deciding one first; for each device those of `cost_columns` and `speed-up DEVICE`; `reward`, `chosen
    by`, `episode`; for the finalists `full held-out accuracy` (and so on), `full reward` and `export` (the student's
    folder). Unknown values are NaN.

    The row `chance` is the best constant prediction. `random, mean of n` is the mean of the candidates chosen at
    random, with the speed-up of their mean latency; `random, best of n` is the one with the highest reward.
    """
    shown: list[dict[str, Any]] = [_candidate(one) for one in results.shown]
    if results.teacher or results.teacher_metrics:
        shown.append({"model": "teacher", **cost_columns(results.teacher), **_compared(results.teacher_metrics)})
    if results.chance:
        shown.append({"model": "chance", **_compared(results.chance)})
    shown += _random(results)
    columns = ["model", "rank", "mini rank", "trial", "architecture", "parameters (M)", *_measured(results)]
    columns += ["reward", "chosen by", "episode", *(f"full {name}" for name in _held_out(results))]
    return _frame(results, shown, [*columns, "full reward", "export"])


def candidates(results: Results) -> pd.DataFrame:
    """Makes the table of all candidates that have ended; failed ones come last, with the reason.

    Besides the columns of `table`: `state`, `reason`, each value of the architecture, `FLOPs (G)`, `predicted reward`
    (by the controller), `seconds` of the training, `precision`, and the ranks by reward, by the deciding metric and by
    latency, all of mini-KD.
    """
    rows = [_candidate(one) | {"state": "finished", **one.architecture.to_dict()} for one in results.ranking]
    rows += map(_failed, results.failed)
    values = Architecture.__dataclass_fields__
    by = results.metric_names[0]
    ranks = ["rank by reward", f"rank by {by}", *(f"rank by latency {device}" for device in results.devices)]
    columns = ["trial", "state", "reason", "rank", *ranks, "architecture", *values, "parameters (M)", "FLOPs (G)"]
    columns += [*_measured(results), "reward", "predicted reward", "chosen by", "episode", "seconds", "precision"]
    columns += [*(f"full {name}" for name in _held_out(results)), "full reward", "export"]
    frame = _frame(results, rows, columns)
    frame["precision"] = results.precision
    frame["rank by reward"] = frame["reward"].rank(ascending=False, method="min")
    order = pd.Series([quality(one.mini.metrics) for one in results.ranking], dtype=float)
    frame[f"rank by {by}"] = order.rank(ascending=False, method="min").reindex(frame.index)
    for device in results.devices:
        frame[f"rank by latency {device}"] = frame[f"latency {device} (ms)"].rank(method="min")
    return frame


def open_search(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """Reads the candidates of a search, finished or not, from its folder.

    Args:
        folder: the search folder (`search.dir`).

    Returns:
        A row a candidate, the best first, failed ones last. Among the columns: `rank`, `trial`, `state` (finished or
        failed) and `reason`; the five values of the architecture; `parameters (M)` and `FLOPs (G)`; `held-out loss`
        and the other held-out metrics; `latency DEVICE (ms)` and its `spread`, `busy` and `speed-up` for each device;
        `reward`, `chosen by`, `episode`; and for those distilled in full `full held-out loss` (and so on), `full
        reward` and `export`, the folder of the exported model. Unknown values are NaN.

    Raises:
        ConfigError: the folder holds no search, or its journal is damaged.
    """
    path = Path(folder)
    require((path / JOURNAL).is_file(), "folder", folder, f"a search folder; it has no {JOURNAL}")
    storage = open_storage(path)
    begun = "full" in get_all_study_names(storage)  # reading must not create it
    return whole_numbers(candidates(Results.of(path.name, Study(storage), Study(storage, "full") if begun else None)))


def whole_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Converts ranks, trials, episodes and the sizes of architectures to integers."""
    numbers = [name for name in frame if name in WHOLE or "rank" in str(name).split()]
    return frame.astype(dict.fromkeys(numbers, "Int64"))


def _frame(results: Results, rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=columns)
    frame = frame.astype({name: object if name in TEXTS or name.startswith("busy ") else float for name in columns})
    latency = results.teacher.latency if results.teacher else {}
    return frame.assign(**speed_ups(frame, {device: seen.median for device, seen in latency.items()}))


def _held_out(results: Results) -> list[str]:
    return [f"{HELD_OUT}{name}" for name in results.metric_names]


def _measured(results: Results) -> list[str]:
    return [*_held_out(results), *(name for device in results.devices for name in latency_columns(device))]


def _compared(metrics: Any) -> dict[str, float]:
    return {f"{part}{HELD_OUT}{name}": value for name, value in metrics.items() for part in ("", "full ")}


def _candidate(one: Ranked) -> dict[str, Any]:
    row = {
        "model": "candidate",
        "rank": one.rank,
        "mini rank": one.mini_rank,
        "trial": one.mini.trial,
        "architecture": str(one.architecture),
        **{f"{HELD_OUT}{name}": value for name, value in one.mini.metrics.items()},
        "reward": one.mini.reward,
        "predicted reward": one.mini.prediction,
        "seconds": one.mini.seconds,
        "chosen by": one.mini.origin,
        "episode": one.mini.episode + 1,
        "export": one.export or math.nan,
        **cost_columns(one.cost),
    }
    if one.full:
        row |= {f"full {HELD_OUT}{name}": value for name, value in one.full.metrics.items()}
        row["full reward"] = one.full.reward
    return row


def _failed(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "model": "candidate",
        "state": "failed",
        "reason": trial.user_attrs.get("reason", "unknown"),
        "trial": trial.number,
        "architecture": f"[{', '.join(map(str, trial.params.values()))}]",
        "chosen by": trial.user_attrs.get("origin"),
        "episode": trial.user_attrs.get("episode", 0) + 1,
        "predicted reward": trial.user_attrs.get("prediction"),
        **trial.params,
    }


def _random(results: Results) -> list[dict[str, Any]]:
    """Makes the rows of the candidates chosen at random: what a search without a controller would have found."""
    drawn = [one for one in results.ranking if one.mini.origin == "random"]
    if not drawn:
        return []
    averaged = ["parameters (M)", *_held_out(results), "reward"]
    averaged += [f"latency {device} (ms)" for device in results.devices]
    mean = pd.DataFrame([_candidate(one) for one in drawn]).reindex(columns=averaged).astype(float).mean()
    best = min(drawn, key=lambda one: one.mini_rank)
    return [
        {"model": f"random, mean of {len(drawn)}", **mean.to_dict()},
        {**_candidate(best), "model": f"random, best of {len(drawn)}"},
    ]
