"""What a user sees of one training: a bar on a terminal, lines in the log."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.trainer.states import TrainerFn

from kdnas.search.loop import duration

log = logging.getLogger(__name__)
REFRESH = 10
"""Steps between two updates of the bar."""
LINES = 4
"""Log lines a training: at each quarter."""


class Progress(TQDMProgressBar):
    """Lightning's bar, headed by what is trained; without a terminal, or in a log file, a line at each quarter.

    Args:
        title: as "episode 2/5 candidate 3".
    """

    def __init__(self, title: str) -> None:
        # Not at every step, which would wait for the device to show its loss.
        super().__init__(refresh_rate=REFRESH if sys.stderr.isatty() else 0, leave=False)
        self.title = title
        self._start = 0.0
        self._first = self._done = 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        super().on_train_start(trainer, module)
        self._start = time.monotonic()
        self._first = self._done = share(trainer, batches=0)

    def _what(self, module: L.LightningModule) -> str:
        """The title, and the part of the training if there are several."""
        phase = getattr(module, "phase", "")
        return f"{self.title}, {phase}" if phase else self.title

    def on_train_epoch_start(self, trainer: L.Trainer, *args: object) -> None:
        super().on_train_epoch_start(trainer, *args)
        what = self._what(trainer.lightning_module)
        self.train_progress_bar.set_description(f"{what}, epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)
        done = share(trainer, batch_idx + 1)
        if int(done * LINES) > int(self._done * LINES):
            left = (time.monotonic() - self._start) / (done - self._first) * (1 - done)
            step, loss = trainer.global_step, float(trainer.callback_metrics["train/loss"])
            what = self._what(module)
            log.info("%s: %.0f %%, step %d, train/loss %.4g, %s left", what, 100 * done, step, loss, duration(left))
        self._done = done

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        super().on_validation_end(trainer, module)
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            figures = [
                f"{name} {float(value):.4g}" for name, value in trainer.callback_metrics.items() if name[:4] == "val/"
            ]
            log.info("%s: epoch %d, %s", self._what(module), trainer.current_epoch + 1, ", ".join(figures))


def share(trainer: L.Trainer, batches: int) -> float:
    """How much of the training is done after so many batches of the epoch, from 0 to 1."""
    if trainer.max_steps != -1:
        return trainer.global_step / trainer.max_steps
    # Epochs count alike, though with a transfer set some have more batches than others.
    return (trainer.current_epoch + batches / trainer.num_training_batches) / (trainer.max_epochs or 1)
