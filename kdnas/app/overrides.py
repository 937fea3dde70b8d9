"""Checks the overrides of a command line: their grammar before Hydra parses them, and their use after it."""

import logging
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from kdnas.app.kinds import changed_keys
from kdnas.base.config import in_quotes, instantiate
from kdnas.base.errors import ConfigError, shown

log = logging.getLogger(__name__)
DISTILLING = ("architecture", "architectures", "objective", "outputs", "teacher", "latency", "student")
"""Parts of a config that only a distillation uses."""
SEARCHING = ("search", "space", "controller", "reward")
"""Parts of a config that only a search has a use for."""
SHARED = ("paths.output", "paths.export")
"""Settings that must differ between the jobs of a multirun."""
NEEDED = ("objective",)
"""Config groups that cannot be left out: others depend on the choice."""
OPTIONAL = ("latency", "outputs", "logger")
"""Groups that a run does not need."""
TASKS = ("data", "module", "objective", "teacher", "reward")
"""Parts of a config that may refer to a task's settings."""


def checked(words: list[str], conf: Path, sweeps: bool) -> list[str]:
    """Returns the arguments for Hydra: flags first, then the overrides (see `for_hydra`); refuses wrong ones.

    `sweeps` is whether the command itself is a sweep, without `-m`.
    """
    known, unknown = get_args_parser().parse_known_args(words)
    if known.resolve and known.cfg == "hydra":
        raise ConfigError(
            "--cfg hydra --resolve: Hydra's settings refer to the rest of the config; must be --cfg all --resolve"
        )
    overrides = {word: parsed(word) for word in (*known.overrides, *unknown) if not word.startswith("-")}
    several = sweeps or known.multirun or any(word.startswith("hydra.mode=") for word in overrides)
    for word, override in overrides.items():
        check_group(word, override, conf)
        if override.is_sweep_override() and not several:
            raise ConfigError(
                f"{word}: several values need -m, which makes one run of each; as one value: {quoted(word)}"
            )
        if several:
            refuse_shared(word, override)
    flags = [word for word in words if word not in overrides]  # first: Hydra takes no overrides on both sides of one
    return flags + [for_hydra(word, overrides[word], conf) for word in words if word in overrides]


def parsed(word: str) -> Override:
    """Parses an override; refuses what is not in Hydra's grammar."""
    try:
        override = OverridesParser.create().parse_override(word)
        if override.key_or_group:
            return override
        reason = ""
    except HydraException as error:
        reason = " ".join(str(error).partition("See https")[0].split())
    key, equals, _ = word.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{shown(word)}: must be key=value, without spaces around the =, or ~key to leave one out")
    way = quoted(word)
    if not way:
        raise ConfigError(f"{shown(word)}: {shown(key)} is not a key; must be key=value")
    raise ConfigError(f"{shown(word)}: not in Hydra's grammar ({reason}); must be quoted: {way}")


def quoted(word: str) -> str:
    """Returns the override, for a shell, with its value quoted as one text; empty where quotes do not help."""
    key, _, value = word.partition("=")
    better = f"{key}={in_quotes(value)}"
    try:
        reads = OverridesParser.create().parse_override(better).value()
    except HydraException:
        return ""
    return shlex.quote(better) if reads == value else ""


def check_group(word: str, override: Override, conf: Path) -> None:
    """Refuses a value of a config group that cannot be the name of a config, with the names that there are."""
    key, value = override.key_or_group, override.value()
    if override.is_sweep_override() or not (conf / key).is_dir():
        return
    left_out = override.is_delete() and key in NEEDED
    if left_out or not (override.is_delete() or isinstance(value, str | list)):
        options = ", ".join(sorted(path.stem for path in (conf / key).glob("*.yaml")))
        hint = f"; '~{key}' leaves it out" if value is None and key not in NEEDED else ""
        raise ConfigError(f"{word}: must be one of {options}{hint}")


def refuse_shared(word: str, override: Override) -> None:
    """Refuses one folder for all jobs of a multirun; `word` is the override as it was typed."""
    fixed = not override.is_sweep_override() and override.value() is not None and "${" not in word
    if override.key_or_group in SHARED and fixed:
        raise ConfigError(f"{word}: all jobs would write there; must be left out, and each has a folder of its own")


def for_hydra(word: str, override: Override, conf: Path) -> str:
    """Returns an override as Hydra takes it: `student.init=teacher` as `student/init=teacher`, since it chooses a
    config, and `~` at the beginning of a value expanded, which the shell does not do within an argument.
    """
    key, _, text = word.partition("=")
    group, value = key.replace(".", "/"), override.value()
    names = isinstance(value, str) or override.is_sweep_override()
    if "." in key and names and (conf / override.key_or_group.replace(".", "/")).is_dir():
        return f"{group}={text}"
    if not isinstance(value, str) or not value.startswith("~"):
        return word
    return f"{key}={in_quotes(os.path.expanduser(value))}"


def leave_out(cfg: DictConfig, words: Sequence[str]) -> None:
    """Removes the groups that the command line leaves out (`~latency`), even if an experiment sets values in them."""
    keys = [key for _, key in typed(words)]
    for group in (word[1:] for word in words if word.startswith("~") and word[1:] in OPTIONAL):
        rest = cfg.get(group)
        if isinstance(rest, DictConfig) and "_target_" not in rest and not any(k.startswith(f"{group}.") for k in keys):
            cfg[group] = None


def refuse_unused(cfg: DictConfig, words: Sequence[str], searching: bool = False) -> None:
    """Refuses overrides of the command line that change nothing; the error names the first.

    `cfg` is the config before the settings of its kind of job are merged.
    """
    replaced = changed_keys(cfg, cfg.job.kind)
    for word, key in typed(words):
        for reason in reasons(cfg, key, searching):
            raise ConfigError(f"{word}: {reason}")
        only_searched = key.partition(".")[0] in SEARCHING and not key.startswith(("search.dir", "search.stages"))
        if not searching and (only_searched or key in replaced):  # a search and its distillations share command lines
            log.warning("%s: applies to search.py only; this run ignores it", word)


def typed(words: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the overrides that set a value, each with its key."""
    overrides = OverridesParser.create().parse_overrides(list(words))
    return [(str(one.input_line), str(one.key_or_group)) for one in overrides if not one.is_delete()]


def reasons(cfg: DictConfig, key: str, searching: bool) -> Iterator[str]:
    """Yields the reasons why a setting would not be used; none if it is used."""
    part, _, name = key.replace("/", ".").partition(".")
    if key == "checkpoint" and cfg.checkpoint is not None and not refers(cfg, ["module"], "checkpoint"):
        yield "is for +experiment=finetune; a distillation starts from student.init=checkpoint student.init.source=..."
    if part == "task" and cfg.task is not None and not refers(cfg, TASKS, "task"):
        yield (
            "not a setting of the chosen configs; data=glue reads a task's rows, objective=xtremedistil learns its "
            "labels"
        )
    if cfg.architectures is None and part in DISTILLING and cfg.get(part) is not None:
        yield "is only for distillations; must be left out"
    if searching and part in ("architecture", "architectures"):
        yield "a search chooses the architectures itself; the values of a dimension are space.<dimension>=[...]"
    if key == "module.learning_rate" and cfg.architectures is not None:
        rates = [stage.learning_rate for stage in instantiate(cfg.objective).stages]
        if None not in rates:
            yield "each stage has a learning rate of its own, as objective.labels.learning_rate"
    if part == "objective" and name in instantiate(cfg.objective).settings and not refers(cfg, [part], key + "}"):
        yield "no term of the objective refers to it; must be left out"
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
