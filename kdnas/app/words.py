"""Checks the arguments of a command line before Hydra parses them, and suggests how to quote what it would refuse."""

import os
import shlex
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from kdnas.app.unused import refuse_shared
from kdnas.base.config import in_quotes
from kdnas.base.errors import ConfigError, shown


def checked(words: list[str], conf: Path, sweeps: bool) -> list[str]:
    """Returns the arguments for Hydra: flags first, and `~` at the beginning of a value expanded; refuses wrong ones.

    `sweeps` is whether the command itself is a sweep, without `-m`.
    """
    known, unknown = get_args_parser().parse_known_args(words)
    if known.resolve and known.cfg == "hydra":
        raise ConfigError("--cfg hydra --resolve: Hydra's part has values of the other; must be --cfg all --resolve")
    overrides = {word: parsed(word) for word in (*known.overrides, *unknown) if not word.startswith("-")}
    several = sweeps or known.multirun or any(word.startswith("hydra.mode=") for word in overrides)
    for word, override in overrides.items():
        check_group(word, override, conf)
        if override.is_sweep_override() and not several:
            raise ConfigError(f"{word}: several values take -m, for a run each; as one value: {quoted(word)}")
        if several:
            refuse_shared(word, override)
    flags = [word for word in words if word not in overrides]  # first: Hydra takes no overrides on both sides of one
    return flags + [at_home(word, overrides[word]) for word in words if word in overrides]


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
    chooses = not override.is_delete() and not override.is_sweep_override() and (conf / key).is_dir()
    group = key.replace(".", "/")
    if group != key and isinstance(value, str) and (conf / group).is_dir():
        raise ConfigError(f"{word}: chooses a config; must be {group}={value}")
    if chooses and not isinstance(value, str | list):
        options = ", ".join(sorted(path.stem for path in (conf / key).glob("*.yaml")))
        raise ConfigError(f"{word}: must be one of {options}" + f"; '~{key}' leaves it out" * (value is None))


def at_home(word: str, override: Override) -> str:
    """Expands `~` at the beginning of an override's value: the shell does not, within an argument, nor does Hydra."""
    value = override.value()
    if not isinstance(value, str) or not value.startswith("~"):
        return word
    return f"{word.partition('=')[0]}={in_quotes(os.path.expanduser(value))}"
