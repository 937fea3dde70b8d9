"""Lightning callbacks around every step: random numbers of its own, and no latency measured on the host meanwhile."""

from contextlib import ExitStack
from typing import Any

import lightning as L
import torch

from kdnas.base.host import QuietHost


class SeedSteps(L.Callback):
    """Seeds every training step by its number: dropout in a resumed run is as in one that was never stopped.

    Each device has its own random numbers, or all would drop out the same units.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        seed = hash((self.seed, trainer.current_epoch, batch_idx)) + trainer.global_rank
        torch.manual_seed(seed % 2**63)


class QuietSteps(L.Callback):
    """Holds the host's lock during each step, so that no measurement runs on the host meanwhile (see `QuietHost`).

    In a DDP training only the first process of a host does so. If each did, one could wait for a measurement, the
    measurement for a process within its step, and that process for the first one's gradients: a deadlock.
    """

    def __init__(self) -> None:
        self._host = QuietHost()
        self._step = ExitStack()

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.local_rank == 0:
            self._step.enter_context(self._host.busy())

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if module.device.type == "cuda" and self._host.wanted():
            torch.cuda.synchronize()  # the step's kernels may still be queued
        self._step.close()

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.on_train_batch_start(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self.on_train_batch_end(trainer, module)

    def on_exception(self, *_: Any) -> None:
        self._step.close()
