"""What a run's folder says of the run: the settings that decide its results, and the results once it has finished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from kdnas.config import flatten, plain
from kdnas.errors import ConfigError
from kdnas.files import fingerprint, make_folder, whole

SETTINGS, RESULTS, PREPARED = "settings.json", "results.json", "prepared.json"
DECIDE = ("architectures", "module", "data", "trainer", "seed")
"""The parts of a config that decide what comes out of a training."""
EXCEPT = (
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.max_time"),
    *("trainer.default_root_dir", "latency.patience", "latency.fresh"),
)
"""Those of them that do not."""
MODELS = ("module.teacher", "module.initial", "module.source.source")
"""Those of them that name a model, which may change behind its name."""


def earlier_results(folder: Path, config: DictConfig) -> list[dict[str, float]] | None:
    """The results of a run if that very run has finished in its folder before.

    Raises:
        ConfigError: the folder holds the results or a checkpoint of a run with other settings, or damaged files.
    """
    settings = _settings(config)
    noted, results = folder / SETTINGS, folder / RESULTS
    if noted.is_file() and (results.is_file() or (folder / "last.ckpt").is_file()):
        theirs = _read(noted)
        if not isinstance(theirs, dict):
            raise _damaged(noted)
        for key in sorted((theirs.keys() | settings.keys()).difference(EXCEPT)):
            if theirs.get(key) != settings.get(key):
                raise ConfigError(
                    f"{key}={settings.get(key)}: {folder} holds a run with {theirs.get(key)}; "
                    "must be the same to go on there, or be given another folder"
                )
        if results.is_file():
            return read_results(results)
    return None


def note(folder: Path, config: DictConfig) -> None:
    """Writes down, in a run's folder, the settings that its checkpoints and results will be of."""
    make_folder("paths.output", folder)
    with whole(folder / SETTINGS) as path:
        path.write_text(json.dumps(_settings(config), indent=1) + "\n")


def write_results(path: Path, results: list[dict[str, float]]) -> None:
    """Writes the held-out figures of a run that has finished, a mapping for each of its models."""
    with whole(path) as aside:
        aside.write_text(json.dumps(results, indent=1) + "\n")


def read_results(path: Path) -> list[dict[str, float]]:
    """What `write_results` wrote.

    Raises:
        ConfigError: a damaged file.
    """
    results = _read(path)
    fits = isinstance(results, list) and results and all(isinstance(figures, dict) for figures in results)
    if not fits or not all(isinstance(value, int | float) for figures in results for value in figures.values()):
        raise _damaged(path)
    return results


def write_prepared(folder: Path, facts: dict[str, Any]) -> None:
    """Writes what the prepare job of a search has settled for all of its jobs.

    Args:
        folder: the prepare job's own.
        facts: `precision` (as Lightning names it), `teacher_metrics` and `chance` (held-out metrics by name, of the
            teacher and of the best constant prediction; empty where the objective has no metric).
    """
    with whole(folder / PREPARED) as aside:
        aside.write_text(json.dumps(facts, indent=1) + "\n")


def read_prepared(folder: Path) -> dict[str, Any]:
    """Reads what `write_prepared` wrote.

    Raises:
        ConfigError: a damaged file.
    """
    facts = _read(folder / PREPARED)
    if not isinstance(facts, dict):
        raise _damaged(folder / PREPARED)
    return facts


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> ConfigError:
    return ConfigError(f"paths.output={path.parent}: its {path.name} is damaged; remove that file to run again")


def _settings(config: DictConfig) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for name in DECIDE:
        chosen |= flatten({name: plain(config[name])})
    models = {key: value for key, value in chosen.items() if key in MODELS and value}
    weights = {f"{key} (weights)": fingerprint(Path(str(value))) for key, value in models.items()}
    return {key: value for key, value in (chosen | weights).items() if key not in EXCEPT}
