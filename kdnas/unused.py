"""Settings that a user gives and a run would not use: each is refused with what would be used in its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from kdnas.config import instantiate
from kdnas.errors import ConfigError

DISTILLING = ("architecture", "architectures", "objective", "outputs", "teacher", "latency")
"""Parts of a config that only a distillation has a use for."""
OPTIONAL = ("latency", "outputs", "logger")
"""Groups that a run can do without."""
TASKS = ("data", "module", "objective", "teacher", "reward")
"""Parts of a config in which a task's settings can be referred to."""


def leave_out(cfg: DictConfig, words: Sequence[str]) -> None:
    """Leaves out the groups that the command line does (`~latency`), whatever an experiment had set in them."""
    keys = [key for _, key in typed(words)]
    for group in (word[1:] for word in words if word.startswith("~") and word[1:] in OPTIONAL):
        rest = cfg.get(group)
        if isinstance(rest, DictConfig) and "_target_" not in rest and not any(k.startswith(f"{group}.") for k in keys):
            cfg[group] = None


def refuse_unused(cfg: DictConfig, words: Sequence[str]) -> None:
    """Refuses words of the command line that change nothing.

    Args:
        cfg: before a stage's settings.
        words: the overrides.

    Raises:
        ConfigError: names the first such word.
    """
    for word, key in typed(words):
        for why in reasons(cfg, key):
            raise ConfigError(f"{word}: {why}")


def typed(words: Sequence[str]) -> list[tuple[str, str]]:
    """The overrides that set something, each with its key."""
    overrides = OverridesParser.create().parse_overrides(list(words))
    return [(str(one.input_line), str(one.key_or_group)) for one in overrides if not one.is_delete()]


def reasons(cfg: DictConfig, key: str) -> Iterator[str]:
    """Why a setting would not be used; nothing if it would."""
    part, name = key.partition(".")[0], key.partition(".")[2]
    if key == "checkpoint" and cfg.checkpoint is not None and not refers(cfg, ["module"], "checkpoint"):
        yield "is for +experiment=finetune; a distillation starts from module.initial"
    if part == "task" and cfg.task is not None and not refers(cfg, TASKS, "task."):
        yield "not a setting of what is chosen; data=glue reads a task's rows, objective=xtremedistil learns its labels"
    if cfg.architectures is None and part in DISTILLING and cfg.get(part) is not None:
        yield "is for a distillation, and this is none; must be left out"
    if cfg.stage == "prepare" and part in ("architecture", "architectures"):
        yield "a search chooses the architectures itself; the values of a dimension are space.<dimension>=[...]"
    if key == "module.learning_rate" and cfg.architectures is not None:
        rates = [stage.learning_rate for stage in instantiate(cfg.objective).stages]
        if None not in rates:
            yield "each stage has a learning rate of its own, as objective.labels.learning_rate"
    if part == "teacher" and name not in ("", "path", "prepare") and is_brought(cfg):
        yield f"the teacher in teacher.path={cfg.teacher.path} is not made here, but there; must be left out"


def refers(cfg: DictConfig, parts: Sequence[str], name: str) -> bool:
    """Whether parts of a config take a value from elsewhere in it."""
    raw = [OmegaConf.to_container(cfg[part], resolve=False) for part in parts if isinstance(cfg.get(part), DictConfig)]
    return f"${{{name}" in str(raw) or f":{name}" in str(raw)


def is_brought(cfg: DictConfig) -> bool:
    """Whether the teacher is one of the user's, in a place where one would be made."""
    folder = Path(str(cfg.teacher.path))
    return bool(cfg.teacher.get("prepare")) and folder.is_dir() and not Path(f"{folder}.training").is_dir()
