"""The identity of a run, which decides its results: settings, and digests of its data and the models it starts from."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kdnas.base.config import flatten, plain
from kdnas.base.errors import ConfigError, shown
from kdnas.base.files import fingerprint

TRAINING = ("module", "data", "trainer", "callbacks", "seed")
"""The parts of a config that decide the results of training given students."""
DECIDE = ("architectures", *TRAINING)
"""The parts of a config that decide the results of a run."""
COMPARED = (*TRAINING, "space", "reward", "latency")
"""The parts of a config that must be equal for the rewards of two candidates to be comparable."""
EXCEPT = {
    *(f"trainer.{name}" for name in ("accelerator", "devices", "num_nodes", "strategy", "max_time")),
    *(f"trainer.{name}" for name in ("default_root_dir", "log_every_n_steps", "profiler", "num_sanity_val_steps")),
    *(f"trainer.{name}" for name in ("enable_progress_bar", "enable_model_summary", "detect_anomaly", "benchmark")),
    *("latency.table", "latency.fresh", "latency.patience", "module.depths"),
}
"""Keys of a config that do not change the results of a training."""
NAMES = (
    *("data.path", "data.name", "data.files", "data.extra", "data.csv"),
    *("data.split", "data.validation", "data.columns", "data.label"),
)
"""Keys that say where rows come from. A digest of the rows takes their place in an identity."""
PLACES = ("data.path", "data.files", "data.extra")
"""Keys in `NAMES` whose values may be paths."""
MODELS = ("module.teacher", "module.init.source", "module.source.source")
"""Keys that name a model. A digest of its weights takes their place, if they are on this host."""
OF_ROWS = re.compile(r".*\.task\.(name|path|subset|columns|validation|also)\b.*")
"""A pattern for a task's keys that say where rows come from."""
ROWS, SOURCES = "data (rows)", "data (files)"


class OtherSettingsError(ConfigError):
    """A folder holds results that were made with other settings; `difference` is the first of them, in words."""

    def __init__(self, message: str, difference: str = "") -> None:
        super().__init__(message)
        self.difference = difference


def identity(config: DictConfig, rows: str | None, parts: Sequence[str] = DECIDE) -> dict[str, Any]:
    """Returns everything that decides the results of a config, by dotted key, with the digest of its rows if known."""
    found: dict[str, Any] = {}
    for name in parts:
        found |= flatten({name: _resolved(config, name)})
    models = {key: found[key] for key in MODELS if isinstance(found.get(key), str)}
    for key, model in models.items():
        if digest := weights(model):
            del found[key]
            found |= {other: _renamed(found[other], model, digest) for other in found if other.startswith("space.")}
            found[f"{key} (weights)"] = digest
    of_rows = tuple(f"{name}." for name in NAMES)
    for key in [key for key in found if f"{key}.".startswith(of_rows) or OF_ROWS.fullmatch(key)]:
        del found[key]
    return found | {ROWS: rows, SOURCES: stamp(sources(config))}


def sources(config: DictConfig) -> dict[str, Any]:
    """Returns the settings that say where rows come from, by dotted key."""
    return {name: plain(OmegaConf.select(config, name)) for name in NAMES}


def require_same(wanted: Mapping[str, Any], existing: Mapping[str, Any], holds: str, instead: str) -> None:
    """Raises an `OtherSettingsError`, which names the first key, if two identities differ.

    `holds` says what is there ("runs/a holds a run"), and `instead` what a user can do.
    """
    if key := first_difference(existing, wanted):
        here, there = shown(wanted.get(key)), shown(existing.get(key))
        difference = f"with {key}={there}, not {here}"
        raise OtherSettingsError(f"{key}={here}: {holds} with {there}{instead}", difference)


def first_difference(existing: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Returns the first key in which two identities differ; None if they are equal.

    Rows are compared only if both identities have their digest; the stamp of the data's files never is.
    """
    keys = (existing.keys() | wanted.keys()) - EXCEPT - {SOURCES}
    if None in (existing.get(ROWS), wanted.get(ROWS)):
        keys -= {ROWS}
    unequal = (key for key in keys if existing.get(key) != wanted.get(key))
    return min(unequal, key=lambda key: (key.count("."), key), default=None)  # `seed` before keys that refer to it


def weights(model: str) -> str | None:
    """Returns a digest of a model's weights and config, on disk or in the hub's cache; None if it is in neither."""
    from huggingface_hub import try_to_load_from_cache  # slow to import, and Hydra imports this module at every start

    folder = Path(model)
    if not folder.exists():
        with suppress(ValueError):  # not a hub id either
            cached = try_to_load_from_cache(model, "config.json")
            folder = Path(cached).parent if isinstance(cached, str) else folder
    digest = fingerprint(folder)
    with suppress(OSError, ValueError, AttributeError):  # a Lightning checkpoint holds its config itself
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kept = {key: value for key, value in values.items() if key[0] != "_" and key != "transformers_version"}
        both = f"{digest} {json.dumps(kept, sort_keys=True)}"
        return hashlib.sha256(both.encode()).hexdigest()[:16] if digest else None
    return digest


def stamp(sources: Mapping[str, Any]) -> str:
    """Returns a digest of the paths of data, and of the names, sizes and modification times of the files there.

    It is cheap. Where two stamps differ, the rows may still be the same.
    """
    described = json.dumps(sources, sort_keys=True)
    places = _texts([sources.get(name) for name in PLACES])
    for folder in sorted({Path(text) for text in places if text and Path(text).exists()}):
        for path in [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file()):
            status = path.stat()
            described += f" {path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}"
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _renamed(value: Any, model: str, digest: str) -> Any:
    """Returns a setting of the space with a digest in place of a model's name, which may be within a list, as JSON."""
    if not isinstance(value, str):
        return value
    return digest if value == model else value.replace(json.dumps(model), json.dumps(digest))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | Sequence):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)


def _resolved(config: DictConfig, name: str) -> Any:
    """Resolves a part of a config, without the keys in `EXCEPT`, which need not have a value yet."""
    part = OmegaConf.select(config, name)
    if not isinstance(part, DictConfig):
        return plain(part)
    return {str(key): plain(part[key]) for key in part if f"{name}.{key!s}" not in EXCEPT}
