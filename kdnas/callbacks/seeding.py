"""A Lightning callback that makes the random numbers of a step independent of what came before it."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch


class SeedSteps(L.Callback):
    """Seeds every training step by its number: dropout in a resumed run is as in one that was never stopped.

    Of several devices each has its own random numbers, or their shares of a batch would be dropped out alike.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        seed = hash((self.seed, trainer.current_epoch, batch_idx)) + trainer.global_rank
        torch.manual_seed(seed % 2**63)
