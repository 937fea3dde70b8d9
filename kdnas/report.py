"""What a search found: a table, three plots and a closing message, all from its study."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import Any

import pandas as pd
from optuna.trial import TrialState
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdnas.config import override
from kdnas.plots import controller_plot, pareto_plot, reward_plot
from kdnas.search.study import Cost, Observation, Study

HELD_OUT = "held-out "
MEASURED = {"latency": " (ms)", "spread": " (ms)", "speed-up": ""}
"""What the table says of each device, and the units."""
PLOTS = ("reward.png", "pareto.png", "controller.png")
NO_CANDIDATE = "No candidate has finished."
WIDTH = 120
"""Columns of text when there is no terminal to ask: enough for every row to stay in one piece."""


# -- the table


def table(study: Study, finalists: Study | None, top: int) -> pd.DataFrame:
    """The best `top` candidates and every one distilled in full, then what they are compared with.

    Columns: `model` (candidate, teacher, or random), `rank`, `trial`, `architecture`, `parameters (M)`,
    `held-out loss` and the other held-out figures (as `held-out accuracy`), for each device `latency DEVICE (ms)`,
    `spread DEVICE (ms)` (half the width of the middle 90 %) and `speed-up DEVICE` (the teacher's latency over this
    one), `reward`, `chosen by`, `episode`, `full held-out loss` (and so on) and `export` (the folder of the student
    distilled in full). What is not known is NaN.

    The row `random, mean of n` averages the candidates chosen at random, and its speed-up is that of their mean
    latency; `random, best of n` is the one of them with the highest reward.
    """
    distilled = _distilled(finalists)
    candidates = [_candidate(seen, rank, distilled) for rank, seen in enumerate(study.ranked(), start=1)]
    shown = [row for row in candidates if row["rank"] <= top or row["trial"] in distilled]
    teacher = study.teacher
    held_out = [f"{HELD_OUT}{name}" for name in _figures(study)]
    costs = [teacher, *(seen.cost for seen in study.observations)]
    devices = list(dict.fromkeys(device for cost in costs if cost for device in cost.latency))
    if teacher:
        own = {f"full {HELD_OUT}{name}": value for name, value in study.teacher_metrics.items()}
        shown.append({"model": "teacher", **_cost(teacher), **own})
    random = [row for row in candidates if row["chosen by"] == "random"]
    if random:
        averaged = ["parameters (M)", *held_out, "reward", *(f"latency {device} (ms)" for device in devices)]
        mean = pd.DataFrame(random).reindex(columns=averaged).astype(float).mean()
        shown.append({"model": f"random, mean of {len(random)}", **mean.to_dict()})
        shown.append({**random[0], "model": f"random, best of {len(random)}"})

    measured = [f"{name} {device}{unit}" for device in devices for name, unit in MEASURED.items()]
    texts = ["model", "architecture", "chosen by", "export"]
    columns = ["model", "rank", "trial", "architecture", "parameters (M)", *held_out, *measured]
    columns += ["reward", "chosen by", "episode", *(f"full {name}" for name in held_out), "export"]
    frame = pd.DataFrame(shown, columns=columns)
    frame = frame.astype({name: object if name in texts else float for name in columns})
    for device, latency in teacher.latency.items() if teacher else ():
        frame[f"speed-up {device}"] = latency.median / frame[f"latency {device} (ms)"]
    return frame


def _figures(study: Study) -> list[str]:
    """The held-out figures that candidates have, the loss first."""
    return list(dict.fromkeys(["loss", *(name for seen in study.observations for name in seen.metrics)]))


def _candidate(seen: Observation, rank: int, distilled: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    full = distilled.get(seen.trial, {})
    return {
        "model": "candidate",
        "rank": rank,
        "trial": seen.trial,
        "architecture": str(seen.architecture),
        **{f"{HELD_OUT}{name}": value for name, value in seen.metrics.items()},
        "reward": seen.reward,
        "chosen by": seen.origin,
        "episode": seen.episode + 1,
        **{f"full {HELD_OUT}{name}": value for name, value in full.get("metrics", {}).items()},
        "export": full.get("export", math.nan),
        **(_cost(seen.cost) if seen.cost else {}),
    }


def _cost(cost: Cost) -> dict[str, float]:
    row = {"parameters (M)": cost.parameters / 1e6}
    for device, latency in cost.latency.items():
        row[f"latency {device} (ms)"] = latency.median
        row[f"spread {device} (ms)"] = latency.spread
    return row


def _distilled(finalists: Study | None) -> dict[int, dict[str, Any]]:
    """What is known of each candidate distilled in full, by its trial number in the search."""
    done = finalists.current(TrialState.COMPLETE) if finalists else []
    return {trial.user_attrs["candidate"]: trial.user_attrs for trial in done}


def _held_out(frame: pd.DataFrame) -> list[str]:
    return [name.removeprefix(HELD_OUT) for name in frame.columns if name.startswith(HELD_OUT)]


def _devices(frame: pd.DataFrame) -> list[str]:
    return [name.removeprefix("speed-up ") for name in frame.columns if name.startswith("speed-up ")]


# -- for the eye


def as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """The same rows as text to read: rounded, latencies as `3.21 ± 0.05`, nothing where nothing is known."""
    comparison = frame["model"] != "candidate"
    held_out = _held_out(frame)
    text = pd.DataFrame(
        {
            "#": _format(frame["rank"], "{:.0f}"),
            "trial": _format(frame["trial"], "{:.0f}"),
            "architecture": frame["model"].where(comparison, frame["architecture"]),
            "params (M)": _format(frame["parameters (M)"], "{:.1f}"),
        },
        dtype=object,
    )
    for name in held_out:
        text[name] = _format(frame[f"{HELD_OUT}{name}"], "{:#.3g}")
    for device in _devices(frame):
        spread = _format(frame[f"spread {device} (ms)"], " ± {:.2f}")
        text[f"latency {device} (ms)"] = _format(frame[f"latency {device} (ms)"], "{:.2f}") + spread
        text[f"speed-up {device}"] = _format(frame[f"speed-up {device}"], "{:.1f}x")
    text["reward"] = _format(frame["reward"], "{:.4f}")
    text["chosen by"] = frame["chosen by"].fillna("")
    text["episode"] = _format(frame["episode"], "{:.0f}")
    for name in held_out:
        text[f"full {name}"] = _format(frame[f"full {HELD_OUT}{name}"], "{:#.3g}")
    text["export"] = frame["export"].fillna("")
    return text


def _format(values: pd.Series, form: str) -> pd.Series:
    return values.map(lambda value: "" if pd.isna(value) else form.format(value)).astype(object)


def print_table(frame: pd.DataFrame, console: Console | None = None) -> None:
    """Prints the table to the terminal, with the figures that fit; the files have all of them.

    Several devices share a row, one line each. Of candidates it has the loss and the first metric; of students
    distilled in full every metric, or the loss where that is all.
    """
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=WIDTH)
    count = int((frame["model"] == "candidate").sum())
    if not count:
        console.print(NO_CANDIDATE)
    if frame.empty:
        return
    text, devices, held_out = as_text(frame), _devices(frame), _held_out(frame)

    def stacked(name: str) -> list[str]:
        each = (text[f"{name} {device}{MEASURED[name]}"] for device in devices)
        return ["\n".join(lines) for lines in zip(*each, strict=True)]

    columns = {
        "#": text["#"],
        "trial": text["trial"],
        "architecture": text["architecture"].str.replace(", ", ",").str.replace("random,", "random, "),
        "params\n(M)": text["params (M)"],
        **{name: text[name] for name in held_out[:2]},
        "on": ["\n".join(devices)] * len(frame),
        "latency\n(ms)": stacked("latency"),
        "speed\nup": stacked("speed-up"),
        "reward": text["reward"],
        "chosen\nby": text["chosen by"],
        "epi-\nsode": text["episode"],
        **{f"full\n{name}".replace("_", "\n"): text[f"full {name}"] for name in held_out[1:] or held_out},
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    drawn = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    for name in columns:
        drawn.add_column(name, justify="left" if name in ("architecture", "on", "chosen\nby") else "right")
    for number, cells in enumerate(zip(*columns.values(), strict=True), start=1):
        drawn.add_row(*map(Text, cells), end_section=number == count)
    console.print(drawn)


# -- the files


def write(study_folder: Path, study: Study, finalists: Study | None, top: int, experiment: str) -> list[Path]:
    """Writes `report/` in the search folder: `table.csv`, `table.md` and the plots that there is something to draw for.

    Files are made aside and then moved, so each is whole, and an error while making them leaves an earlier report as
    it was. Returns their paths.
    """
    frame = table(study, finalists, top)
    seen, marked = study.observations, _marked(study, finalists, top)
    figures = (
        reward_plot(seen, marked, experiment),
        pareto_plot(seen, marked, study.teacher, experiment),
        controller_plot(seen, experiment),
    )
    folder = Path(study_folder) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".") as aside:
        made = Path(aside)
        whole = {"rank": "Int64", "trial": "Int64", "episode": "Int64"}
        frame.astype(whole).to_csv(made / "table.csv", index=False)
        rows = as_text(frame).to_markdown(index=False, disable_numparse=True) if len(frame) else ""
        note = "" if seen else f"{NO_CANDIDATE}\n\n"
        (made / "table.md").write_text(f"# {experiment}\n\n{note}{rows}\n", encoding="utf-8")
        for name, figure in zip(PLOTS, figures, strict=True):
            if figure is not None:
                figure.savefig(made / name, format="png", dpi=figure.dpi)
        names = [name for name in ("table.csv", "table.md", *PLOTS) if (made / name).exists()]
        for name in names:
            os.replace(made / name, folder / name)
    for name in set(PLOTS) - set(names):
        (folder / name).unlink(missing_ok=True)
    return [folder / name for name in names]


def _marked(study: Study, finalists: Study | None, top: int) -> dict[int, int]:
    """The finalists, trial -> rank: those distilled in full, or else those that would be."""
    distilled = _distilled(finalists)
    ranks = {seen.trial: rank for rank, seen in enumerate(study.ranked(), start=1)}
    return {trial: rank for trial, rank in ranks.items() if (trial in distilled if distilled else rank <= top)}


# -- the closing message


def summary(
    study: Study,
    finalists: Study | None,
    folder: Path,
    distil: Sequence[str],
    finetune: str,
    written: Sequence[Path] = (),
) -> str:
    """Plain text to end a search with: the winner, how it compares, and the commands to use it.

    Args:
        folder: the search folder.
        distil: the words of a command that distils with the search's own teacher, data and settings.
        finetune: the task's overrides in the command that fine-tunes.
        written: the report's files, to be listed.
    """
    commands = _commands(study, finalists, folder, distil, finetune)
    return "\n\n".join(["\n".join(_winner(study, finalists)), *commands, *_files(study, written)])


def _winner(study: Study, finalists: Study | None) -> list[str]:
    ranked = study.ranked()
    failed = study.trials(TrialState.FAIL)
    reasons = [str(trial.user_attrs["reason"]) for trial in failed if "reason" in trial.user_attrs]
    last = f"; the last reason: {shorten(reasons[-1], 160)}" if reasons else ""
    trouble = [f"{len(failed)} failed{last}"] if failed else []
    if not ranked:
        return [NO_CANDIDATE, *trouble]
    best, teacher = ranked[0], study.teacher
    who = "at random" if best.origin == "random" else "by the controller"
    lines = [f"Best of {len(ranked)}: {best.architecture} (trial {best.trial}, chosen {who})"]
    lines.append(f"  reward         {best.reward:.4f}")
    lines.append(f"  held-out       {_told(best.metrics)}")
    if best.cost:
        lines.append(f"  parameters     {best.cost.parameters / 1e6:.1f} M")
        for device, latency in best.cost.latency.items():
            than = teacher.latency.get(device) if teacher else None
            faster = f", {than.median / latency.median:.1f}x as fast as the teacher" if than else ""
            lines.append(f"  latency        {latency.median:.2f} ± {latency.spread:.2f} ms on {device}{faster}")
    random = [seen.reward for seen in ranked if seen.origin == "random"]
    if random:
        chosen = [seen.reward for seen in ranked if seen.origin != "random"]
        for name, rewards in (("at random", random), ("by controller", chosen)):
            if rewards:
                mean = sum(rewards) / len(rewards)
                lines.append(
                    f"  {len(rewards)} chosen {name}: reward {mean:.4f} on average, {max(rewards):.4f} at best"
                )
    ranks = {seen.trial: (rank, seen.architecture) for rank, seen in enumerate(ranked, start=1)}
    for candidate, full in _distilled(finalists).items():
        rank, architecture = ranks[candidate]
        told = _told(full.get("metrics", {}))
        lines.append(f"Distilled in full: #{rank} {architecture}, {told}, in {full.get('export', 'no folder')}")
    return lines + trouble


def _told(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:#.3g}" for name, value in figures.items())


def _commands(study: Study, finalists: Study | None, folder: Path, distil: Sequence[str], finetune: str) -> list[str]:
    ranked = study.ranked()
    if not ranked:
        return []
    again = f"{shlex.join(distil)} architecture=from_search {_shell('search.dir', folder)}"
    export = _distilled(finalists).get(ranked[0].trial, {}).get("export")
    purpose = "Distil it again, or for longer:" if export else "Distil it in full:"
    commands = [f"{purpose}\n  {again} architecture.rank=1"]
    if export:
        tune = f"python train.py +experiment=finetune {_shell('checkpoint', export)} {finetune} seed=1"
        auto = _auto_class(Path(export))
        load = f'from transformers import {auto}\n  model = {auto}.from_pretrained("{export}")'
        commands += [f"Fine-tune it:\n  {tune}", f"Load it:\n  {load}"]
    return commands


def _auto_class(export: Path) -> str:
    """The class of transformers that loads all of an exported model, its head too."""
    config = export / "config.json"
    made = json.loads(config.read_text()).get("architectures") if config.is_file() else None
    head = re.search(r"For\w+$", made[0]) if made else None
    return f"AutoModel{head[0] if head else ''}"


def _files(study: Study, written: Sequence[Path]) -> list[str]:
    seen = study.observations
    lines = [f"  {path}" for path in written]
    if lines and seen and all(one.prediction is None for one in seen):
        lines.append("  (no controller.png: no candidate has a prediction of the controller's)")
    return ["\n".join(["Written:", *lines])] if lines else []


def _shell(key: str, value: object) -> str:
    return shlex.quote(override(key, str(value)))
