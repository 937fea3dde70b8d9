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
LINES = 4
"""Log lines a training: at each quarter."""


class Progress(TQDMProgressBar):
    """Lightning's bar, headed by what is trained; without a terminal, or in a log file, a line at each quarter.

    Args:
        title: as "episode 2/5 candidate 3".
    """

    def __init__(self, title: str) -> None:
        super().__init__(refresh_rate=int(sys.stderr.isatty()), leave=False)
        self.title = title
        self._start = 0.0
        self._first = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        super().on_train_start(trainer, module)
        self._start, self._first = time.monotonic(), trainer.global_step

    def _what(self, module: L.LightningModule) -> str:
        """The title, and the part of the training if there are several."""
        phase = getattr(module, "phase", "")
        return f"{self.title}, {phase}" if phase else self.title

    def on_train_epoch_start(self, trainer: L.Trainer, *args: object) -> None:
        super().on_train_epoch_start(trainer, *args)
        what = self._what(trainer.lightning_module)
        self.train_progress_bar.set_description(f"{what}, epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        super().on_train_batch_end(trainer, module, *args)
        step, total = trainer.global_step, int(trainer.estimated_stepping_batches)
        if step * LINES // total > (step - 1) * LINES // total:
            left = (time.monotonic() - self._start) / max(step - self._first, 1) * (total - step)
            loss = float(trainer.callback_metrics["train/loss"])
            what = self._what(module)
            log.info("%s: step %d of %d, train/loss %.4g, %s left", what, step, total, loss, duration(left))

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        super().on_validation_end(trainer, module)
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            figures = [
                f"{name} {float(value):.4g}" for name, value in trainer.callback_metrics.items() if name[:4] == "val/"
            ]
            log.info("%s: epoch %d, %s", self._what(module), trainer.current_epoch + 1, ", ".join(figures))
