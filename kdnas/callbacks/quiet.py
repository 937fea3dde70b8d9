"""A Lightning callback that keeps training out of other processes' latency measurements."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import lightning as L
import torch

from kdnas.base.host import QuietHost


class QuietSteps(L.Callback):
    """Holds the host's lock during each step, so that no measurement runs on the host meanwhile (see `QuietHost`).

    In a DDP training only the first process of a host does so. If each did, one could wait for a measurement, the
    measurement for a process within its step, and that process for the first one's gradients: a deadlock.
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
