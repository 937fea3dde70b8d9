"""A Lightning callback that shows the progress of one training."""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn

from kdnas.base.screen import Activity, activity
from kdnas.modules.base import ExportingModule

log = logging.getLogger(__name__)
LOOK = 1.0
"""Seconds between two readings of the training loss: each waits for the device."""


class Progress(ProgressBar):
    """Shows a training and its validations as activities, and logs each epoch's held-out metrics in a line."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self.title, self.enabled = title, True
        self._open = {"training": ExitStack(), "validating": ExitStack()}
        self._training: Activity | None = None
        self._validating: Activity | None = None
        self._looked = 0.0

    def disable(self) -> None:
        self.enabled = False

    def on_train_start(self, trainer: L.Trainer, module: ExportingModule) -> None:
        if self.enabled:
            self._training = self._open["training"].enter_context(activity("training", total=1.0))
            self._training.begin_at(share(trainer, batches=0))

    def on_train_batch_end(
        self, trainer: L.Trainer, module: ExportingModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._training is None:
            return
        self._training.done = share(trainer, batch_idx + 1)
        if time.monotonic() - self._looked >= LOOK:
            self._looked = time.monotonic()
            loss = trainer.callback_metrics.get("train/loss")
            parts = [module.phase, f"epoch {trainer.current_epoch + 1}{of(trainer)}"]
            parts += [] if loss is None else [f"loss {float(loss):.4g}"]
            self._training.words = ", ".join(filter(None, parts))

    def on_validation_start(self, trainer: L.Trainer, module: ExportingModule) -> None:
        if self.enabled and not trainer.sanity_checking:
            total = sum(count for count in trainer.num_val_batches if count != float("inf")) or None
            self._validating = self._open["validating"].enter_context(activity("validating", total=total))

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self._validating is not None:
            self._validating.advance(1)

    def on_validation_end(self, trainer: L.Trainer, module: ExportingModule) -> None:
        if self._validating is None:
            return
        self._close_validating()
        if trainer.state.fn == TrainerFn.FITTING:
            parts = [self.title, module.phase, f"epoch {trainer.current_epoch + 1}{of(trainer)}"]
            log.info("%s: %s", ", ".join(filter(None, parts)), formatted(module.results))

    def _close_validating(self) -> None:
        self._open["validating"].close()
        self._validating = None

    def _close(self) -> None:
        self._close_validating()
        self._open["training"].close()
        self._training = None

    def on_train_end(self, *_: Any) -> None:
        self._close()

    def teardown(self, *_: Any, **__: Any) -> None:
        self._close()

    def on_exception(self, *_: Any) -> None:
        self._close()


def of(trainer: L.Trainer) -> str:
    """Returns the number of epochs, as "/4"; empty where the training is limited by steps."""
    return f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""


def formatted(results: Sequence[Mapping[str, float]]) -> str:
    """Formats held-out metrics; for several students, the lowest and the highest value of each."""
    parts = []
    for name in results[0] if results else ():
        values = [one[name] for one in results]
        low, high = f"{min(values):.4g}", f"{max(values):.4g}"
        parts.append(f"{name} {low}" if low == high else f"{name} {low} to {high}")
    return ", ".join(parts)


def share(trainer: L.Trainer, batches: int) -> float:
    """Returns the share of the training that is done after `batches` batches of the epoch, from 0 to 1."""
    if trainer.max_steps != -1:
        return trainer.global_step / trainer.max_steps
    # All epochs count equally, though with a transfer set the first have more batches.
    return (trainer.current_epoch + batches / trainer.num_training_batches) / (trainer.max_epochs or 1)
