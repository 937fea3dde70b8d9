"""Calls Lightning's `fit`: with a progress display, and with one-line errors for bad settings."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, Timer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from kdnas.base.errors import ConfigError
from kdnas.callbacks import Progress
from kdnas.datamodules.base import EncodedDataModule
from kdnas.modules.base import ExportingModule
from kdnas.training.arguments import user_callbacks

LIGHTNINGS = ("`val_check_interval`", "Early stopping conditioned on")
"""The beginnings of Lightning's messages about settings that do not fit the batches or the logged metrics."""


def bar(cfg: DictConfig) -> list[L.Callback]:
    """Returns the callback that shows the progress; none if the user has chosen a progress bar or switched it off."""
    given = cfg.trainer.get("enable_progress_bar") is False
    if given or any(isinstance(callback, ProgressBar) for callback in user_callbacks(cfg.trainer)):
        return []
    return [Progress(cfg.title)]


def fit(trainer: L.Trainer, module: ExportingModule, data: EncodedDataModule, last: str | None) -> None:
    """Trains, from the checkpoint `last` if there is one.

    Raises:
        ConfigError: settings do not fit the number of batches, or the logged metrics.
    """
    try:
        trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())
        if isinstance(error, MisconfigurationException) or said.startswith(LIGHTNINGS):
            raise ConfigError(f"trainer: {said}") from error
        raise


def check_time(trainer: L.Trainer, cfg: DictConfig) -> None:
    """Refuses a training that a time limit has ended: it is a failure, and no result with a low reward."""
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    if any((timer.time_remaining() or 1) <= 0 for timer in timers):
        limit = cfg.trainer.max_time
        setting = "trainer.callbacks: Timer" if limit is None else f"trainer.max_time={limit}"
        raise ConfigError(
            f"{setting}: was over in epoch {trainer.current_epoch + 1}; must be longer, to go on from there"
        )
