"""Refuses settings that the user gives and the run would not use, and names the setting to use instead."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from kdnas.base.config import instantiate
from kdnas.base.errors import ConfigError

log = logging.getLogger(__name__)
DISTILLING = ("architecture", "architectures", "objective", "outputs", "teacher", "latency")
"""Parts of a config that only a distillation uses."""
SEARCHING = ("search", "space", "controller", "reward")
"""Parts of a config that only a search has a use for."""
OPTIONAL = ("latency", "outputs", "logger")
"""Groups that a run does not need."""
TASKS = ("data", "module", "objective", "teacher", "reward")
"""Parts of a config that may refer to a task's settings."""


def leave_out(cfg: DictConfig, words: Sequence[str]) -> None:
    """Removes the groups that the command line leaves out (`~latency`), even if an experiment sets values in them."""
    keys = [key for _, key in typed(words)]
    for group in (word[1:] for word in words if word.startswith("~") and word[1:] in OPTIONAL):
        rest = cfg.get(group)
        if isinstance(rest, DictConfig) and "_target_" not in rest and not any(k.startswith(f"{group}.") for k in keys):
            cfg[group] = None


def refuse_unused(cfg: DictConfig, words: Sequence[str]) -> None:
    """Refuses overrides that change nothing.

    Args:
        cfg: the config, before a stage's settings are merged.
        words: the overrides of the command line.

    Raises:
        ConfigError: an override is not used; the message names the first.
    """
    for word, key in typed(words):
        for why in reasons(cfg, key):
            raise ConfigError(f"{word}: {why}")
        searching = key.partition(".")[0] in SEARCHING and not key.startswith(("search.dir", "search.stages"))
        if cfg.stage == "full" and (searching or key == "data.proxy"):  # a search and its distillations share words
            log.warning("%s: is for search.py; this run does without", word)


def typed(words: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the overrides that set a value, each with its key."""
    overrides = OverridesParser.create().parse_overrides(list(words))
    return [(str(one.input_line), str(one.key_or_group)) for one in overrides if not one.is_delete()]


def reasons(cfg: DictConfig, key: str) -> Iterator[str]:
    """Yields the reasons why a setting would not be used; none if it is used."""
    part, name = key.partition(".")[0], key.partition(".")[2]
    if key == "checkpoint" and cfg.checkpoint is not None and not refers(cfg, ["module"], "checkpoint"):
        yield "is for +experiment=finetune; a distillation starts from module.initial"
    if part == "task" and cfg.task is not None and not refers(cfg, TASKS, "task"):
        yield (
            "not a setting of the chosen configs; data=glue reads a task's rows, objective=xtremedistil learns its "
            "labels"
        )
    if cfg.architectures is None and part in DISTILLING and cfg.get(part) is not None:
        yield "is only for distillations; must be left out"
    if cfg.stage == "prepare" and part in ("architecture", "architectures"):
        yield "a search chooses the architectures itself; the values of a dimension are space.<dimension>=[...]"
    if key == "module.learning_rate" and cfg.architectures is not None:
        rates = [stage.learning_rate for stage in instantiate(cfg.objective).stages]
        if None not in rates:
            yield "each stage has a learning rate of its own, as objective.labels.learning_rate"
    if part == "teacher" and name not in ("", "path", "prepare") and is_brought(cfg):
        yield f"the teacher in teacher.path={cfg.teacher.path} is your own and is not trained here; must be left out"


def refers(cfg: DictConfig, parts: Sequence[str], name: str) -> bool:
    """Returns whether parts of a config refer to a key by an interpolation."""
    raw = [OmegaConf.to_container(cfg[part], resolve=False) for part in parts if isinstance(cfg.get(part), DictConfig)]
    return f"${{{name}" in str(raw) or f":{name}" in str(raw)


def is_brought(cfg: DictConfig) -> bool:
    """Returns whether the teacher is the user's own, in the folder where one would be trained."""
    folder = Path(str(cfg.teacher.path))
    return bool(cfg.teacher.get("prepare")) and folder.is_dir() and not Path(f"{folder}.training").is_dir()
