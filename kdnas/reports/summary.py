"""The closing message of a search."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from kdnas.base.config import override
from kdnas.reports.cells import BUSY
from kdnas.reports.notes import NO_CANDIDATE, notes
from kdnas.reports.results import Results
from kdnas.search.ranking import Ranked


def answer(results: Results) -> str:
    """Describes the best candidate, in comparison to the teacher, chance and random choices, as plain text."""
    best = results.best
    lines = [NO_CANDIDATE] if best is None else [*_winner(results, best), *_random(results)]
    return "\n".join([*lines, *(f"Note: {note}" for note in notes(results))])


def _winner(results: Results, best: Ranked) -> list[str]:
    seen, teacher = best.decisive, results.teacher
    chosen = "at random" if best.mini.origin == "random" else "by the controller"
    lines = [f"Best of {len(results.ranking)}: {best.architecture} (trial {best.mini.trial}, chosen {chosen})"]
    if best.full:
        lines += [f"  student        {best.export}"] * bool(best.export)
        lines.append(f"  rank           1 after the full distillation, {best.mini_rank} after mini-KD")
    compared = {"the teacher": results.teacher_metrics, "chance": results.chance}
    if best.full:
        compared = {"after mini-KD": best.mini.metrics, **compared}
    for name in (name for name in results.metric_names if name in seen.metrics):
        known = [f"{model} {_number(metrics[name])}" for model, metrics in compared.items() if name in metrics]
        lines.append(f"  {name:<14} {_number(seen.metrics[name])}" + f" ({', '.join(known)})" * bool(known))
    cost = best.cost
    for device, latency in cost.latency.items() if cost else ():
        than = teacher.latency.get(device) if teacher else None
        faster = f", {than.median / latency.median:.1f}x as fast as the teacher" if than else ""
        mark = BUSY * (latency.busy or bool(than and than.busy))
        lines.append(f"  latency        {latency.median:.2f} ± {latency.spread:.2f} ms on {device}{faster}{mark}")
    if cost:
        than_parameters = f" (the teacher {teacher.parameters / 1e6:.1f} M)" if teacher else ""
        lines.append(f"  parameters     {cost.parameters / 1e6:.1f} M{than_parameters}")
    mini = f" (after mini-KD {best.mini.reward:.4f})" if best.full else ""
    return [*lines, f"  reward         {seen.reward:.4f}{mini}"]


def _random(results: Results) -> list[str]:
    groups: Mapping[str, list[float]] = {"at random": [], "by the controller": []}
    for one in results.ranking:
        groups["at random" if one.mini.origin == "random" else "by the controller"].append(one.mini.reward)
    if not groups["at random"]:
        return []
    return [
        f"  {len(rewards)} chosen {name}: reward {mean(rewards):.4f} on average, {max(rewards):.4f} at best"
        for name, rewards in groups.items()
        if rewards
    ]


def _number(value: float) -> str:
    return f"{value:#.3g}"


def files(results: Results, written: Sequence[Path]) -> str:
    """Lists the report's files."""
    lines = [f"  {path}" for path in written]
    if lines and results.ranking and all(one.mini.prediction is None for one in results.ranking):
        lines.append("  (no controller.png: no candidate has a prediction of the controller's)")
    return "\n".join(["Written:", *lines]) if lines else ""


def commands(results: Results, folder: Path, distil: Sequence[str], finetune: Sequence[str]) -> str:
    """Returns the commands that distil, fine-tune and load the best candidate of a search folder.

    The words `distil` have the search's teacher, data and settings, `finetune` its task, without the checkpoint.
    """
    best = results.best
    if best is None:
        return ""
    again = ["architecture=from_search", override("search.dir", str(folder)), "architecture.rank=1"]
    purpose = "Distil it again, or for longer:" if best.export else "Distil it in full:"
    parts = [f"{purpose}\n  {shlex.join([*distil, *again])}"]
    if best.export:
        tune = [*finetune, override("checkpoint", best.export), "seed=1"]
        auto = auto_class(Path(best.export))
        where = json.dumps(best.export, ensure_ascii=False)
        load = f"from transformers import {auto}\n  model = {auto}.from_pretrained({where})"
        parts += [f"Fine-tune it:\n  {shlex.join(tune)}", f"Load it:\n  {load}"]
    return "\n\n".join(parts)


def auto_class(export: Path) -> str:
    """Returns the Auto class of transformers that loads an exported model with its head."""
    config = export / "config.json"
    made = json.loads(config.read_text()).get("architectures") if config.is_file() else None
    head = re.search(r"For\w+$", made[0]) if made else None
    return f"AutoModel{head[0] if head else ''}"
