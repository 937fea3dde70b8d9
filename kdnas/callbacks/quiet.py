"""A Lightning callback that keeps training out of other processes' latency measurements."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import lightning as L
import torch

from kdnas.host import QuietHost


class QuietSteps(L.Callback):
    """Holds the host for the length of each step, so that no measurement on it runs meanwhile (see `QuietHost`).

    Of several processes on a host that train together only the first does: one that had to wait for a measurement
    while another is in the step, and waits for it, would never get to go. The others get as far as the first is needed.
    """

    def __init__(self) -> None:
        self._host = QuietHost()
        self._step = ExitStack()

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._enter(trainer)

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._enter(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self._leave(module)

    def on_validation_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self._leave(module)

    def on_exception(self, *_: Any) -> None:
        self._step.close()

    def _enter(self, trainer: L.Trainer) -> None:
        if trainer.local_rank == 0:
            self._step.enter_context(self._host.busy())

    def _leave(self, module: L.LightningModule) -> None:
        if module.device.type == "cuda" and self._host.wanted():
            torch.cuda.synchronize()  # the step's kernels may still be queued
        self._step.close()
