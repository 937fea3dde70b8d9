"""A run's folder: its lock, the settings of the run, and its results once it has finished."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from kdnas.base.errors import ConfigError
from kdnas.base.files import make_folder, write_json
from kdnas.base.folders import claimed, discard, holds_only
from kdnas.base.identity import SOURCES, identity, require_same

SETTINGS, RESULTS, PREPARED = "settings.json", "results.json", "prepared.json"
LOCK = ".lock"
"""The lock file in a run's folder, held by the process that trains there."""


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Locks a run's folder, so that no other run works in it (see `claimed`)."""
    what = "another run is at work there"
    with claimed(folder, "paths.output", folder / LOCK, what, lambda: not holds_only(folder, [LOCK])):
        yield


def earlier_results(folder: Path, config: DictConfig, rows: str | None = None) -> list[dict[str, float]] | None:
    """Returns the results of a run if the same run has finished in its folder before.

    Args:
        rows: the digest of the rows; None before they are read: results then count only if the files are unchanged.

    Raises:
        OtherSettingsError: the folder holds a run with other settings; a ConfigError where its files are damaged.
    """
    noted, results = folder / SETTINGS, folder / RESULTS
    if not noted.is_file() or not (results.is_file() or (folder / "last.ckpt").is_file()):
        return None
    existing, wanted = _read(noted), identity(config, rows)
    if not isinstance(existing, dict):
        raise _damaged(noted)
    instead = "; must be the same to go on there, or paths.output another folder"
    require_same(wanted, existing, f"{folder} holds a run", instead)
    if not results.is_file() or (rows is None and existing.get(SOURCES) != wanted[SOURCES]):
        return None
    return read_results(results)


def earlier_precision(folder: Path) -> str | None:
    """Returns the precision that the run in a folder began with; None if there was no run."""
    with suppress(OSError, ValueError, AttributeError):
        return json.loads((folder / SETTINGS).read_text(encoding="utf-8")).get("trainer.precision")
    return None


def note(folder: Path, config: DictConfig, rows: str) -> None:
    """Writes a run's identity into its folder before it trains; `rows` is the digest of its data."""
    make_folder("paths.output", folder)
    write_json(folder / SETTINGS, identity(config, rows))


def read_results(path: Path) -> list[dict[str, float]]:
    """Reads the held-out metrics of a finished run, a mapping for each of its models; refuses a damaged file."""
    results = _read(path)
    fits = isinstance(results, list) and results and all(isinstance(metrics, dict) for metrics in results)
    if not fits or not all(isinstance(value, int | float) for metrics in results for value in metrics.values()):
        raise _damaged(path)
    return results


def write_prepared(folder: Path, facts: dict[str, Any]) -> None:
    """Writes what the prepare job of a search has determined for all jobs into its folder.

    That is `precision` (Lightning's name), `rows` (the data's digest), `teacher` (see `Cost.to_dict`), the held-out
    metrics by name, `teacher_metrics` and `chance` (of the best constant prediction), and the number `held_out_rows`.
    """
    write_json(folder / PREPARED, facts)


def read_prepared(folder: Path) -> dict[str, Any]:
    """Reads what `write_prepared` wrote; refuses a damaged file."""
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


def withdraw() -> None:
    """Removes the folder that Hydra made for a run, if it holds nothing but Hydra's own files."""
    if not HydraConfig.initialized():
        return
    config = HydraConfig.get()
    if OmegaConf.is_missing(config.runtime, "output_dir"):  # composed by hand
        return
    folder, notes = Path(config.runtime.output_dir), config.output_subdir
    if notes is not None and holds_only(folder, [notes, f"{config.job.name}.log", LOCK]):
        discard(folder, folder.parent)
