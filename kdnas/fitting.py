"""One call of Lightning's `fit`: what shows how far it is, and what of it is a user's mistake."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, Timer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from kdnas.arguments import user_callbacks
from kdnas.callbacks import Progress
from kdnas.datamodules.base import EncodedDataModule
from kdnas.errors import ConfigError
from kdnas.modules.base import ExportingModule

LIGHTNINGS = ("`val_check_interval`", "Early stopping conditioned on")
"""How Lightning begins to refuse a setting once it sees the batches or the figures."""


def bar(cfg: DictConfig) -> list[L.Callback]:
    """What shows how far a training is: a bar of the user's own, ours, or nothing."""
    given = cfg.trainer.get("enable_progress_bar") is False
    if given or any(isinstance(callback, ProgressBar) for callback in user_callbacks(cfg.trainer)):
        return []
    return [Progress(cfg.title)]


def fit(trainer: L.Trainer, module: ExportingModule, data: EncodedDataModule, last: str | None) -> None:
    """Trains, from a checkpoint if there is one.

    Raises:
        ConfigError: settings that Lightning finds not to fit the number of batches, or the figures that are logged.
    """
    try:
        trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())
        if isinstance(error, MisconfigurationException) or said.startswith(LIGHTNINGS):
            raise ConfigError(f"trainer: {said}") from error
        raise


def check_time(trainer: L.Trainer, cfg: DictConfig) -> None:
    """What was cut short has not shown what it can do: that is a failure, and not a low reward."""
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    if any((timer.time_remaining() or 1) <= 0 for timer in timers):
        limit = cfg.trainer.max_time
        setting = "trainer.callbacks: Timer" if limit is None else f"trainer.max_time={limit}"
        raise ConfigError(
            f"{setting}: was over in epoch {trainer.current_epoch + 1}; must be longer, to go on from there"
        )
