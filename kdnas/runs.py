"""What a run's folder says of the run: the settings that decide its results, and the results once it has finished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdnas.config import flatten
from kdnas.errors import ConfigError

SETTINGS, RESULTS = "settings.json", "results.json"
DECIDE = ("architectures", "module", "data", "trainer", "seed")
"""The parts of a config that decide what comes out of a training."""
EXCEPT = ("trainer.accelerator", "trainer.default_root_dir", "data.workers")
"""Those of them that do not."""


def claim(folder: Path, config: DictConfig) -> list[dict[str, float]] | None:
    """Notes a run's settings in its folder; returns the results if that very run has finished there before.

    Raises:
        ConfigError: the folder holds the results or a checkpoint of a run with other settings.
    """
    settings = _settings(config)
    noted, results = folder / SETTINGS, folder / RESULTS
    if noted.is_file() and (results.is_file() or (folder / "last.ckpt").is_file()):
        known = json.loads(noted.read_text())
        for key in sorted(known.keys() | settings.keys()):
            if known.get(key) != settings.get(key):
                raise ConfigError(
                    f"{key}={settings.get(key)}: {folder} holds a run with {known.get(key)}; "
                    "must be the same to go on there, or be given another folder"
                )
        if results.is_file():
            return json.loads(results.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    noted.write_text(json.dumps(settings, indent=1) + "\n")
    return None


def _settings(config: DictConfig) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for name in DECIDE:
        try:
            value = config[name]
            plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException as error:
            raise ConfigError(
                f"{error.full_key}: wants a value that no chosen group gives ({str(error).splitlines()[0]})"
            ) from error
        chosen |= flatten({name: plain})
    return {key: value for key, value in chosen.items() if key not in EXCEPT}
