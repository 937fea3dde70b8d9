"""Instantiates objects from configs, formats overrides, and registers the resolvers of configs."""

import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdnas.base.errors import ConfigError, chain, shown

CONF = next(path / "conf" for path in Path(__file__).resolve().parents[1:] if (path / "conf").is_dir())
"""The folder of configs: within an installed kdnas, or beside it at the top of the repository."""
PLAIN = re.compile(r"(?!(?:true|false|null|nan|inf|on|off|yes|no)$)[A-Za-z_/][A-Za-z0-9_/.:@+-]*", re.IGNORECASE)
"""A pattern for text that needs no quotes in an override: no number, and no keyword of Hydra's grammar."""
REFERENCE = re.compile(r"\$\{(?:oc\.select:)?([\w.]+)(?:,null)?\}")
"""A pattern for a reference to another key, which may be optional."""
LONGEST = 100
"""The most bytes of a name; file systems allow 255 for a folder, of which some names are only a part."""


def instantiate(config: Any, **arguments: Any) -> Any:
    """Calls Hydra's `instantiate` with plain containers, and turns bad input into a `ConfigError` with the full key."""
    for key in sorted(OmegaConf.missing_keys(config)) if OmegaConf.is_config(config) else ():
        missing = ConfigError.of(f"{_name(config)}.{key}", ": required value is missing")
        raise as_written(config, missing)  # Hydra would pass "???"
    try:
        return hydra.utils.instantiate(_own(config), _convert_="object", **arguments)
    except OmegaConfBaseException as error:  # an interpolation that cannot be resolved
        raise mistake(error, _name(config)) from error
    except InstantiationException as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, ConfigError):
            cause = cause.__cause__
        if isinstance(cause, ConfigError):
            part = re.search(r"^full_key: (\S+)$", str(error), re.MULTILINE)
            raise as_written(config, cause.within(part[1] if part else _name(config))) from error
        if str(error).startswith("Error locating target"):
            raise ConfigError(f"{_name(config)}: {str(error).partition(',')[0]}") from error
        if isinstance(cause, TypeError | ValueError):  # a wrong type, or an unknown argument
            raise ConfigError(f"{_name(config)}: {' '.join(str(cause).split())}") from error
        raise cause from None  # the original error, without Hydra's wrapping


def _name(config: Any) -> str:
    key = config._get_full_key(None) if isinstance(config, DictConfig) else ""
    return str(key or config.get("_target_"))


def _own(config: Any) -> Any:
    """Returns a part of a copy of the whole config: Hydra resolves references in place, wherever they lead."""
    key = config._get_full_key(None) if isinstance(config, DictConfig) else ""
    return OmegaConf.select(copy.deepcopy(config._get_root()), key) if key else config


def as_written(config: Any, error: ConfigError) -> ConfigError:
    """Returns an error whose key is complete, with the key where its setting is written."""
    return type(error)(_written(config, error.key) + str(error).removeprefix(error.key)) if error.key else error


def _written(config: Any, key: str) -> str:
    """Returns where a setting is written: `task.metric` for the `module.task.metric` of `module: {task: ${task}}`."""
    node: Any = config._get_root() if isinstance(config, DictConfig) else None
    parts = key.split(".")
    for i, part in enumerate(parts, start=1):
        if not isinstance(node, DictConfig) or part not in node:
            return key
        node = node._get_node(part)
        if found := REFERENCE.fullmatch(str(node._value())):
            return _written(config, ".".join([found[1], *parts[i:]]))
    return key


def plain(config: Any) -> Any:
    """Returns a config, or a part of one, as plain values with all interpolations resolved."""
    try:
        return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    except OmegaConfBaseException as error:
        raise mistake(error) from error


def mistake(error: BaseException, name: str = "config") -> ConfigError:
    """Returns the `ConfigError` for an error of reading a config; `name` is the key if the error does not name one."""
    for cause in chain(error):
        if isinstance(cause, ConfigError):  # raised by a resolver
            return cause
    if missing := re.search(r"Missing mandatory value: (\S+)", str(error)):
        return ConfigError(f"{missing[1]}: required value is missing")
    key = getattr(error, "full_key", None) or name
    return ConfigError(f"{key}: refers to a value that no chosen group sets ({str(error).splitlines()[0]})")


def override(key: str, value: Any) -> str:
    """Formats `key=value` for Hydra's command line; quotes text other than plain names and paths."""
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
    """Quotes a text for Hydra's command line: backslashes are escapes only before a quotation mark."""
    return '"' + re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), text) + '"'


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Flattens nested mappings to one with dotted keys, and lists to JSON."""
    if isinstance(values, dict):
        flat: dict[str, Any] = {}
        for name, value in values.items():
            flat |= flatten(value, f"{prefix}.{name}" if prefix else name)
        return flat
    return {prefix: json.dumps(values) if isinstance(values, list) else values}


def label(model: str, random: bool = False) -> str:
    """Returns a folder name for a model's results: the last three parts of its path, as `minilm-full-0003`.

    The endings that all runs have in common (`model`, `best.ckpt`) are left out; random weights add `-random`.
    """
    parts = [part for part in Path(model).parts if part.strip("/.")]
    while len(parts) > 1 and (parts[-1] == "model" or parts[-1].endswith(".ckpt")):
        parts.pop()
    return re.sub(r"[^\w.+-]", "-", "-".join(parts[-3:])) + "-random" * random


def folder(key: str, *, _root_: DictConfig) -> str:
    """Returns the value of a key; refuses one that is not the name of one folder, as a path that leads elsewhere."""
    value = OmegaConf.select(_root_, key)
    name = "" if value is None else str(value)
    if name in ("", ".", "..") or "/" in name or not name.isprintable() or len(name.encode()) > LONGEST:
        raise ConfigError(
            f"{key}={shown(value)}: names a folder; must be of 1 to {LONGEST} printable characters without a slash, "
            "and not . or .."
        )
    return name


def begun(moment: str) -> str:
    """Returns a name for a run from its starting time; the tasks of one SLURM step get a common name."""
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return "slurm-{SLURM_JOB_ID}.{SLURM_STEP_ID}".format_map(os.environ)
    return moment


def for_task(value: Any, otherwise: Any, *, _root_: DictConfig) -> Any:
    """Returns the value if the config has a task, and otherwise the other one."""
    return otherwise if OmegaConf.select(_root_, "task") is None else value


# In every config, since Hydra's plugins import this module at every start.
OmegaConf.register_new_resolver("begun", begun, replace=True)
OmegaConf.register_new_resolver("label", label, replace=True)
OmegaConf.register_new_resolver("folder", folder, replace=True)
OmegaConf.register_new_resolver("for_task", for_task, replace=True)
