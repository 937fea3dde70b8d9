"""The commands as functions, for notebooks and other programs."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from kdnas.app import command
from kdnas.base.config import CONF, override
from kdnas.base.errors import ConfigError, require

if TYPE_CHECKING:
    import pandas as pd


def run_search(*overrides: str, config_dir: str | os.PathLike[str] | None = None) -> pd.DataFrame:
    """Runs a search, or continues the one in its folder, and returns its candidates.

    The same as `python search.py` with these overrides, in this process:
    `run_search("+experiment=demo", "search.episodes=2")`. May be called several times, also from a notebook.

    Args:
        overrides: settings in Hydra's grammar, as on the command line.
        config_dir: a folder with configs of your own, searched before kdnas's.

    Returns:
        A row a candidate, the best first; see `open_search`.

    Raises:
        ConfigError: bad input; the message names the setting, its value and what would be allowed.
        DiskError: a disk is full or cannot be written to; the same call continues the search.
    """
    from kdnas.reports.table import open_search

    words = _words(overrides, config_dir)
    with _apart():
        command.search.run(words)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            folder = compose("search", sys.argv[1:]).search.dir  # the words as the command has checked them
    return open_search(folder)


def distil(*overrides: str, config_dir: str | os.PathLike[str] | None = None) -> dict[str, float]:
    """Distils one architecture in full, pre-trains it, or fine-tunes a model; returns its held-out metrics.

    The same as `python train.py` with these overrides, in this process:
    `distil("+experiment=minilm", "architecture=kdnas_v2_arch1", "paths.output=runs/mine")` leaves `model/` (a folder
    for `AutoModel.from_pretrained`), `best.ckpt` and `results.json` in `runs/mine`. A run that has finished there
    before is not repeated. Arguments and errors are those of `run_search`.
    """
    with _apart():
        return command.train.run(_words(overrides, config_dir))[0]


def _words(overrides: tuple[str, ...], config_dir: str | os.PathLike[str] | None) -> list[str]:
    """Returns the arguments of the command, and refuses flags: a function has no help to print and no sweep to run."""
    for word in overrides:
        if word.startswith(("-", "hydra.mode=")):
            raise ConfigError(f"{word}: must be an override, as key=value")
    if config_dir is None:
        return list(overrides)
    require(Path(config_dir).is_dir(), "config_dir", config_dir, "a folder of configs")
    return [*overrides, override("hydra.searchpath", [f"file://{Path(config_dir).resolve()}"])]


@contextmanager
def _apart() -> Iterator[None]:
    """Restores, after the block, what Hydra sets for the whole process: its own state, arguments and log handlers."""
    hydra, config, arguments, root = GlobalHydra.instance(), HydraConfig.instance(), sys.argv, logging.getLogger()
    before = hydra.hydra, config.cfg, root.handlers[:], root.level
    hydra.clear()
    sys.argv = arguments[:1]
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(before[2]):
            handler.close()
        hydra.hydra, config.cfg, root.handlers[:], level = before
        root.setLevel(level)
        sys.argv = arguments
