"""Objects from configs, and what configs need to be read.

Hydra imports this at every start (by way of its sweeper plugin), so that `${label:...}`, `${folder:...}` and
`${begun:...}` are known in every config.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdnas.errors import ConfigError, shown

NOT_FOUND = "Error locating target"
"""How Hydra begins to say so."""
PLAIN = re.compile(r"(?!(?:true|false|null|nan|inf|on|off|yes|no)$)[A-Za-z_/][A-Za-z0-9_/.:@+-]*", re.IGNORECASE)
"""Text that needs no quotes: no number, and no word with a meaning of its own."""
LONGEST = 100
"""Bytes of a name; file systems allow 255 for a folder, which some are a part of."""


def instantiate(config: Any, **arguments: Any) -> Any:
    """Hydra's `instantiate`, with plain containers, and with the mistakes that it wraps as `ConfigError`."""
    for key in sorted(OmegaConf.missing_keys(config)) if OmegaConf.is_config(config) else ():
        raise ConfigError(f"{_name(config)}.{key}: required value is missing")  # Hydra would pass on ??? for it
    try:
        return hydra.utils.instantiate(config, _convert_="object", **arguments)
    except OmegaConfBaseException as error:  # a value that another one was to give
        raise mistake(error, _name(config)) from error
    except InstantiationException as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, ConfigError):
            cause = cause.__cause__
        if isinstance(cause, ConfigError):
            raise cause from error
        if str(error).startswith(NOT_FOUND):
            raise ConfigError(f"{_name(config)}: {str(error).partition(',')[0]}") from error
        if isinstance(cause, TypeError | ValueError):  # a value of the wrong type, a key that it does not have
            raise ConfigError(f"{_name(config)}: {' '.join(str(cause).split())}") from error
        raise cause from None  # what happened, not where it was wrapped


def _name(config: Any) -> str:
    """The key of a part of a config, or what it makes where it has none."""
    key = config._get_full_key(None) if isinstance(config, DictConfig) else ""
    return str(key or config.get("_target_"))


def plain(config: Any) -> Any:
    """A config, or a part of one, as plain values with everything in it resolved."""
    try:
        return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    except OmegaConfBaseException as error:
        raise mistake(error) from error


def mistake(error: BaseException, name: str = "config") -> ConfigError:
    """The user's mistake behind an error that reading a config has raised; `name` says where, if the error does not."""
    cause: BaseException | None = error
    while cause is not None:  # one that a resolver raised
        if isinstance(cause, ConfigError):
            return cause
        cause = cause.__cause__ or cause.__context__
    if missing := re.search(r"Missing mandatory value: (\S+)", str(error)):
        return ConfigError(f"{missing[1]}: required value is missing")
    key = getattr(error, "full_key", None) or name
    return ConfigError(f"{key}: wants a value that no chosen group gives ({str(error).splitlines()[0]})")


def override(key: str, value: Any) -> str:
    """`key=value` as Hydra's command line reads it; text beyond plain names and paths is quoted."""
    return f"{key}={_quoted(value)}"


def _quoted(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list):
        return f"[{','.join(map(_quoted, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_quoted(each)}" for key, each in value.items()) + "}"
    return in_quotes(value) if isinstance(value, str) and not PLAIN.fullmatch(value) else str(value)


def in_quotes(text: str) -> str:
    """A text as Hydra's command line reads it literally: backslashes count only before a quotation mark."""
    return '"' + re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), text) + '"'


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; lists as JSON."""
    if isinstance(values, dict):
        flat: dict[str, Any] = {}
        for name, value in values.items():
            flat |= flatten(value, f"{prefix}.{name}" if prefix else name)
        return flat
    return {prefix: json.dumps(values) if isinstance(values, list) else values}


def label(model: str, random: bool = False) -> str:
    """A name for a model's results, one folder wide: the last three parts of its path, as `minilm-full-0003`.

    What every run's folder ends with (`model`, `best.ckpt`) is left out.

    Args:
        random: whether the weights are left out too.
    """
    parts = [part for part in Path(model).parts if part.strip("/.")]
    while len(parts) > 1 and (parts[-1] == "model" or parts[-1].endswith(".ckpt")):
        parts.pop()
    return re.sub(r"[^\w.+-]", "-", "-".join(parts[-3:])) + "-random" * random


def folder(key: str, *, _root_: DictConfig) -> str:
    """The value of a key as the name of one folder: every name that becomes part of a path goes through here.

    Raises:
        ConfigError: a name that would lead somewhere else, or that is none.
    """
    value = OmegaConf.select(_root_, key)
    name = "" if value is None else str(value)
    if name in ("", ".", "..") or "/" in name or not name.isprintable() or len(name.encode()) > LONGEST:
        raise ConfigError(
            f"{key}={shown(value)}: names a folder; must be of 1 to {LONGEST} printable characters without a slash, "
            "and not . or .."
        )
    return name


def begun(moment: str) -> str:
    """A name for a run that begins at a moment; in a step of several SLURM tasks, one name for all of them."""
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return "slurm-{SLURM_JOB_ID}.{SLURM_STEP_ID}".format_map(os.environ)
    return moment


OmegaConf.register_new_resolver("begun", begun, replace=True)
OmegaConf.register_new_resolver("label", label, replace=True)
OmegaConf.register_new_resolver("folder", folder, replace=True)
