"""A Lightning callback that makes the random numbers of a step independent of what came before it."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch


class SeedSteps(L.Callback):
    """Seeds every training step by its number: dropout in a resumed run is as in one that was never stopped.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(hash((self.seed, trainer.current_epoch, batch_idx)) % 2**63)
