"""What the commands have in common: how they start, and how they refuse bad input.

That is one line on stderr, `error: key=value: must be ...`, exit status 1, and no folder left behind.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from kdnas.config import mistake
from kdnas.errors import ConfigError
from kdnas.screen import activity, board

log = logging.getLogger(__name__)
CONF = Path(__file__).resolve().parent.parent / "conf"


def command(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """`hydra.main` for a task function whose user's mistakes end in one line.

    Args:
        config_name: of a file in `conf/`.
    """

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        begun = False

        @functools.wraps(task)
        def job(cfg: DictConfig) -> Any:
            nonlocal begun
            begun = True
            try:
                with first_words(cfg.get("title")):
                    return task(cfg)
            except (ConfigError, OmegaConfBaseException) as error:
                if HydraConfig.get().mode == RunMode.MULTIRUN:
                    raise mistake(error) from error  # an exit would end the other jobs too
                withdraw()
                sys.exit(f"error: {mistake(error)}")

        @functools.wraps(task)
        def main() -> None:
            nonlocal begun
            begun = False
            board.foreground = "LOCAL_RANK" not in os.environ  # Lightning starts its other processes by the same words
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra is to raise its errors, not to print them
            try:
                check_groups(sys.argv[1:])
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
            except (ConfigError, OmegaConfBaseException) as error:
                sys.exit(f"error: {mistake(error)}")
            except HydraException as error:
                sys.exit(f"error: {said(error)}")
            except OSError as error:
                if begun:
                    raise
                sys.exit(f"error: {error.filename}: cannot be written to ({error.strerror})")

        return main

    return decorate


@contextmanager
def first_words(title: str | None) -> Iterator[None]:
    """Says what begins, before anything is imported that takes seconds. Of its jobs a search says it itself.

    Args:
        title: of the run; None for a command whose output is a table alone.
    """
    if board.narrated or not board.foreground:
        yield
        return
    if title is not None:
        log.info("%s: loading PyTorch and what builds on it", title)
    with activity(title or "starting"):
        yield


def check_groups(words: list[str]) -> None:
    """Refuses what Hydra has no words for: a group of configs that is given a value which names none of them."""
    for word in words:
        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException:
            continue  # an option, or a mistake that Hydra tells
        key, value = override.key_or_group, override.value()
        chooses = not override.is_delete() and not override.is_sweep_override() and (CONF / key).is_dir()
        if chooses and not isinstance(value, str | list):
            options = ", ".join(sorted(path.stem for path in (CONF / key).glob("*.yaml")))
            raise ConfigError(f"{word}: must be one of {options}" + f"; '~{key}' leaves it out" * (value is None))


def said(error: HydraException) -> str:
    """What Hydra says of a mistake, in one line."""
    cause = error.__cause__
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and isinstance(cause.parent_node, DictConfig):
        return f"{cause.full_key}: not a key; there is {', '.join(map(str, cause.parent_node))}"
    return " ".join(str(error).partition("Config search path:")[0].split())


def withdraw() -> None:
    """Takes away the folder that Hydra has made for a run, if it holds nothing but Hydra's own notes."""
    config = HydraConfig.get()
    folder, notes = Path(config.runtime.output_dir), config.output_subdir
    if notes is None or {path.name for path in folder.iterdir()} - {notes, f"{config.job.name}.log"}:
        return
    for path in (*(folder / notes).iterdir(), folder / f"{config.job.name}.log"):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # the first that holds something else, or is not to be removed, ends it
        (folder / notes).rmdir()
        folder.rmdir()
        folder.parent.rmdir()
