"""What a run's folder says of the run: the settings that decide its results, and the results once it has finished."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from kdnas.config import flatten, plain
from kdnas.errors import ConfigError

SETTINGS, RESULTS = "settings.json", "results.json"
DECIDE = ("architectures", "module", "data", "trainer", "seed")
"""The parts of a config that decide what comes out of a training."""
EXCEPT = (
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.max_time"),
    *("trainer.default_root_dir", "data.workers"),
)
"""Those of them that do not."""
MODELS = ("module.teacher", "module.initial", "module.source.source")
"""Those of them that name a model, which may change behind its name."""


def earlier_results(folder: Path, config: DictConfig) -> list[dict[str, float]] | None:
    """The results of a run if that very run has finished in its folder before.

    Raises:
        ConfigError: the folder holds the results or a checkpoint of a run with other settings.
    """
    settings = _settings(config)
    noted, results = folder / SETTINGS, folder / RESULTS
    if noted.is_file() and (results.is_file() or (folder / "last.ckpt").is_file()):
        known = json.loads(noted.read_text())
        for key in sorted((known.keys() | settings.keys()).difference(EXCEPT)):
            if known.get(key) != settings.get(key):
                raise ConfigError(
                    f"{key}={settings.get(key)}: {folder} holds a run with {known.get(key)}; "
                    "must be the same to go on there, or be given another folder"
                )
        if results.is_file():
            return json.loads(results.read_text())
    return None


def note(folder: Path, config: DictConfig) -> None:
    """Writes down a run's settings in its folder, for `earlier_results`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).write_text(json.dumps(_settings(config), indent=1) + "\n")


def _settings(config: DictConfig) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for name in DECIDE:
        chosen |= flatten({name: plain(config[name])})
    models = {key: value for key, value in chosen.items() if key in MODELS and value}
    weights = {f"{key} (weights)": fingerprint(Path(value)) for key, value in models.items()}
    return {key: value for key, value in (chosen | weights).items() if key not in EXCEPT}


def fingerprint(model: Path) -> str | None:
    """A digest of the weights in a checkpoint or a folder; None of what is not on disk."""
    files = [model] if model.is_file() else sorted(model.glob("*.safetensors")) + sorted(model.glob("*.bin"))
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16] if files else None
