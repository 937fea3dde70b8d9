"""What decides a run's results, by content: settings, the rows of its data, the weights of the models it begins with.

Two runs with the same identity have the same results, wherever their files are and whatever they are called.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kdnas.config import flatten, plain
from kdnas.files import fingerprint

DECIDE = ("architectures", "module", "data", "trainer", "seed")
"""The parts of a config that decide what comes out of a training."""
EXCEPT = {
    *(f"trainer.{name}" for name in ("accelerator", "devices", "num_nodes", "strategy", "max_time")),
    *(f"trainer.{name}" for name in ("default_root_dir", "log_every_n_steps", "profiler", "num_sanity_val_steps")),
    *(f"trainer.{name}" for name in ("enable_progress_bar", "enable_model_summary", "detect_anomaly", "benchmark")),
    *("latency.table", "latency.fresh", "latency.patience"),
}
"""Those of their keys that do not."""
NAMES = ("data.path", "data.name", "data.files", "data.extra")
"""Keys that say where rows come from; the rows themselves count."""
MODELS = ("module.teacher", "module.initial", "module.source.source")
"""Keys that name a model; its weights count, if they are on this host."""
ROWS, SOURCES = "data (rows)", "data (files)"


def identity(config: DictConfig, rows: str | None, parts: Sequence[str] = DECIDE) -> dict[str, Any]:
    """What decides the results of a config, by key.

    Args:
        rows: the digest of the data; None if they have not been read.
        parts: of the config, that count.
    """
    found: dict[str, Any] = {}
    for name in parts:
        found |= flatten({name: _resolved(config, name)})
    for key in MODELS:
        digest = weights(found[key]) if isinstance(found.get(key), str) else None
        if digest:
            name = json.dumps(found.pop(key))  # which a list of the space's constraints may hold as well
            found = {
                key: value.replace(name, digest) if isinstance(value, str) else value for key, value in found.items()
            }
            found[f"{key} (weights)"] = digest
    sources = {name: plain(OmegaConf.select(config, name)) for name in NAMES}
    found = {
        key: value for key, value in found.items() if not f"{key}.".startswith(tuple(f"{name}." for name in NAMES))
    }
    return found | {ROWS: rows, SOURCES: stamp(sources)}


def differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first key in which two identities differ, with both values; None if they are one.

    Where either does not know its rows, these do not count; how the data's files look never does.
    """
    keys = (
        (theirs.keys() | ours.keys())
        - EXCEPT
        - {SOURCES}
        - ({ROWS} if None in (theirs.get(ROWS), ours.get(ROWS)) else set())
    )
    for key in sorted(keys, key=lambda key: (key.count("."), key)):  # the seed before what takes it from there
        if theirs.get(key) != ours.get(key):
            return key, theirs.get(key), ours.get(key)
    return None


def weights(model: str) -> str | None:
    """A digest of a model's weights and config, on disk or in the hub's cache; None if they are not there."""
    from huggingface_hub import try_to_load_from_cache  # which takes its time, at every start

    folder = Path(model)
    if not folder.exists():
        with suppress(ValueError):  # not a hub id either
            cached = try_to_load_from_cache(model, "config.json")
            folder = Path(cached).parent if isinstance(cached, str) else folder
    digest = fingerprint(folder)
    with suppress(OSError, ValueError, AttributeError):  # a checkpoint has its config within
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        told = {key: value for key, value in values.items() if key[0] != "_" and key != "transformers_version"}
        both = f"{digest} {json.dumps(told, sort_keys=True)}"
        return hashlib.sha256(both.encode()).hexdigest()[:16] if digest else None
    return digest


def stamp(sources: Any) -> str:
    """A digest of where data come from, and of the names, sizes and times of the files there.

    It is cheap; where it differs, the rows may still be the same.
    """
    said = json.dumps(sources, sort_keys=True)
    for folder in sorted({Path(text) for text in _texts(sources) if Path(text).exists()}):
        for path in [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file()):
            status = path.stat()
            said += f" {path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}"
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _texts(value: Any) -> Iterator[str]:
    """All texts in nested values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | Sequence):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)


def _resolved(config: DictConfig, name: str) -> Any:
    """A part of a config as plain values, but for what does not count, which need not have a value yet."""
    part = OmegaConf.select(config, name)
    if not isinstance(part, DictConfig):
        return plain(part)
    return {str(key): plain(part[key]) for key in part if f"{name}.{key!s}" not in EXCEPT}
