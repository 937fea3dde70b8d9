"""What the modules here have in common: they are trained, judged on held-out data, and leave models behind."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import lightning as L
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer


class ExportingModule(L.LightningModule):
    """A LightningModule around Hugging Face models.

    Attributes:
        tokenizer: that goes with them.
        monitor, mode: the held-out figure that decides which weights are the best, and `min` or `max`.
        results: the held-out figures of the last validation, for each model.
    """

    tokenizer: Tokenizer
    monitor: str
    mode: str

    def __init__(self) -> None:
        super().__init__()
        self.results: list[dict[str, float]] = []

    @property
    @abstractmethod
    def exports(self) -> dict[str, PreTrainedModel]:
        """The models to leave behind, by the prefix of their weights in the state dict."""

    @property
    @abstractmethod
    def trainees(self) -> Sequence[nn.Module]:
        """What is trained independently of each other."""

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips each trainee by its own norm. Lightning's own clipping refuses fused optimizers."""
        for trainee in self.trainees if gradient_clip_val else ():
            nn.utils.clip_grad_norm_(trainee.parameters(), gradient_clip_val or 0.0)
