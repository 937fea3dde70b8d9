"""A Lightning callback that makes the random numbers of an epoch independent of those before it."""

from __future__ import annotations

import lightning as L
import torch


class SeedEpochs(L.Callback):
    """Seeds every epoch by its number: dropout in a resumed run is as in one that was never stopped.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        torch.manual_seed(hash((self.seed, trainer.current_epoch)) % 2**63)
