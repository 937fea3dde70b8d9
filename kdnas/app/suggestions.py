"""The commands that a search suggests at its end, with its own task, data and config folders."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from kdnas.app.kinds import changed_keys
from kdnas.app.overrides import SEARCHING
from kdnas.base.config import CONF, override

OWN = ("proxy", "batch_size", "batch_tokens", "seed")
"""The data settings that fine-tuning has its own values for."""
FINALISTS = "search.stages.full"
"""The settings of a full distillation within the search's config."""


def distillation_overrides(overrides: Sequence[str], cfg: DictConfig) -> list[str]:
    """Returns the overrides of `search.py` that `train.py` needs to repeat a full distillation.

    Overrides of `search.stages.full.<key>` become those of `<key>`; those of other keys that it sets are left out.
    """
    chosen: list[str] = []
    full = changed_keys(cfg, "full")
    for word in overrides:
        key = str(OverridesParser.create().parse_override(word).key_or_group)
        if word.startswith(f"+{FINALISTS}."):
            chosen.append(f"++{word.removeprefix(f'+{FINALISTS}.')}")
        elif key.startswith(FINALISTS) or (re.split(r"[./@]", key)[0] not in (*SEARCHING, "hydra") and key not in full):
            chosen.append(word)
    return chosen


def fine_tuning(config: DictConfig, hydra: DictConfig) -> list[str]:
    """Returns the command that fine-tunes on a search's task, or on the one that the config suggests (`finetune`).

    Settings of the task and its data that differ from the config groups' are added as overrides.
    """
    words, own = [*command(hydra), "+experiment=finetune"], searched(hydra)
    where = [override("paths.runs", config.paths.runs)] if config.paths.runs != "runs" else []
    if OmegaConf.select(config, "task") is None:
        return [*words, *config.finetune.split(), *where]
    choices = [f"{group}={hydra.runtime.choices[group]}" for group in ("data", "task")]
    defaults = compose("train", [*own, "+experiment=finetune", *choices])
    changed = []
    for group in ("task", "data"):
        known, wanted = (leaves(values[group], group) for values in (defaults, config))
        for key, value in wanted.items():
            if key.removeprefix("data.") not in OWN and known.get(key, ...) != value:
                changed.append(("" if key in known else "+") + override(key, value))
    return [*words, *choices, *changed, *where]


def command(hydra: DictConfig, name: str = "train") -> list[str]:
    """Returns the words that begin a training or a search, with the config folders that this command was given."""
    words = ["python", f"{name}.py"] if Path.cwd() == CONF.parent else [f"kdnas-{name}"]
    for source in hydra.runtime.config_sources:
        if source.schema != "file":
            continue
        if source.provider == "command-line":
            words += ["--config-dir", source.path]
        elif source.provider == "main" and Path(source.path).resolve() != CONF:
            words += ["--config-path", source.path]
    return [*words, *searched(hydra)]


def searched(hydra: DictConfig) -> list[str]:
    """Returns the override of the folders that configs are searched in besides; none without such folders."""
    return [override("hydra.searchpath", list(hydra.searchpath))] if hydra.searchpath else []


def leaves(values: Any, key: str) -> dict[str, Any]:
    """Flattens a part of a config to unresolved values by dotted key; lists are values."""
    if OmegaConf.is_config(values):
        values = OmegaConf.to_container(values, resolve=False)
    if not isinstance(values, dict):
        return {key: values}
    return {name: leaf for part, value in values.items() for name, leaf in leaves(value, f"{key}.{part}").items()}
