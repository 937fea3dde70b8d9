"""The commands to continue with after a search, quoted for a shell."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from kdnas.base.config import override
from kdnas.reports.results import Results


def commands(results: Results, folder: Path, distil: Sequence[str], finetune: Sequence[str]) -> str:
    """Returns the commands that distil, fine-tune and load the best candidate.

    Args:
        folder: the search folder.
        distil: the words of a command that distils with the search's teacher, data and settings.
        finetune: the words of a command that fine-tunes on the search's task, without the checkpoint.
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
