"""The commands to go on with after a search, as they can be pasted into a shell."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from kdnas.config import override
from kdnas.reports.results import Results


def commands(results: Results, folder: Path, distil: Sequence[str], finetune: Sequence[str]) -> str:
    """What can be done with the best candidate, a command each.

    Args:
        folder: the search folder.
        distil: the words of a command that distils with the search's own teacher, data and settings.
        finetune: the words of a command that fine-tunes on the search's own task; the checkpoint is added.
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
    """The class of transformers that loads all of an exported model, its head too."""
    config = export / "config.json"
    made = json.loads(config.read_text()).get("architectures") if config.is_file() else None
    head = re.search(r"For\w+$", made[0]) if made else None
    return f"AutoModel{head[0] if head else ''}"
