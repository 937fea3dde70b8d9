"""What the modules here have in common: they are trained, judged on held-out data, and leave models behind."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from kdnas.checkpoints import PACK, architectures, pack
from kdnas.errors import ConfigError
from kdnas.models import Head, architecture_of
from kdnas.modules.best import BestWeights
from kdnas.modules.metrics import SplitMetrics
from kdnas.modules.optimization import adamw, check_optimization, linear

BEST = "best"
"""The key of the best weights so far in a checkpoint."""


class ExportingModule(L.LightningModule):
    """A LightningModule around Hugging Face models, trained by AdamW on a linear schedule.

    Args:
        learning_rate: the peak.
        warmup: the share of all steps over which the learning rate rises; then it falls linearly to zero.
        betas, weight_decay: AdamW's.

    Attributes:
        tokenizer: that goes with the models.
        head: what the models are, and which classes they tell apart.
        monitor: the held-out figure that decides which weights are the best: a loss, or else larger is better.
        results: the held-out figures of the last validation, for each trainee.
        phase: what is trained just now, if there is more than one part to the training.
        epochs: how many it takes; None where that is the Trainer's.
        transfer_epochs: so many of the first need no labels.
    """

    tokenizer: Tokenizer
    head: Head
    monitor: str
    phase = ""
    epochs: int | None = None
    transfer_epochs = 0

    def __init__(self, learning_rate: float, warmup: float, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__()
        check_optimization(learning_rate, warmup, betas, weight_decay)
        self.learning_rate, self.warmup, self.betas, self.weight_decay = learning_rate, warmup, betas, weight_decay
        self.results: list[dict[str, float]] = []
        self._best: BestWeights | None = None

    @property
    @abstractmethod
    def exports(self) -> dict[str, PreTrainedModel]:
        """The models to leave behind, by the prefix of their weights in the state dict."""

    @property
    @abstractmethod
    def trainees(self) -> Sequence[nn.Module]:
        """What is trained independently of each other."""

    @property
    @abstractmethod
    def held_out_metrics(self) -> SplitMetrics:
        """The metrics of the task; of an objective without any, none."""

    def name_classes(self, names: Sequence[str] | None) -> None:
        """Gives the models the names of the data's classes; None where the data has none."""
        for model in self.exports.values():
            self.head.describe(model.config, names)

    @property
    def best(self) -> BestWeights:
        """The weights that did best on held-out data so far."""
        if self._best is None:
            self._best = BestWeights(self.trainees)
        return self._best

    def check(self, masked: bool) -> None:
        """Refuses data that cannot be trained on: `masked` says whether tokens of it are."""

    def on_validation_end(self) -> None:
        # All devices have the same figures, but in the last digit they might not: one decides for all.
        self.results = self.trainer.strategy.broadcast(self.results)
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self.best.update([score(figures, self.monitor) for figures in self.results])

    # -- optimization

    def configure_optimizers(self) -> Optimizer:
        return adamw(self, self.learning_rate, self.betas, self.weight_decay, self.trainer.precision)

    @property
    def peak(self) -> float:
        """Of the learning rate."""
        return self.learning_rate

    def progress(self, batch_idx: int) -> float:
        """How much of the training lies behind a batch of the current epoch, from 0 to 1."""
        return self.trainer.global_step / self.trainer.estimated_stepping_batches

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Not a scheduler: a function of the progress has no state to lose, and can start anew with every stage.
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.peak * linear(self.progress(batch_idx), self.warmup)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips each trainee by its own norm. Lightning's own clipping refuses fused optimizers."""
        for trainee in self.trainees if gradient_clip_val else ():
            nn.utils.clip_grad_norm_(trainee.parameters(), gradient_clip_val or 0.0)

    def on_train_start(self) -> None:
        # Checkpoints are of ended epochs. With `max_steps`, Lightning goes on with what is left of such an epoch, which
        # is nothing, and counts it: all later epochs would be other ones than in a run that was never stopped.
        loop = self.trainer.fit_loop
        if loop.restarted_on_epoch_end:
            loop.epoch_progress.increment_completed()
            loop.reset_restart_stage()
            loop.epoch_loop.restarting = False

    def on_train_batch_end(self, *_: Any) -> None:
        # Lightning validates at the end of an epoch, but not where `max_steps` cuts one short.
        if self.trainer.global_step == self.trainer.max_steps:
            self.trainer.should_stop = True

    # -- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[PACK] = pack(self.exports, self.tokenizer)
        checkpoint[BEST] = self.best.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        theirs = ", ".join(str(architecture) for architecture in architectures(checkpoint))
        ours = ", ".join(str(architecture_of(model.config)) for model in self.exports.values())
        if theirs != ours:
            raise ConfigError(f"checkpoint: holds {theirs or 'no student'}; this run trains {ours}")
        self.best.load_state_dict(checkpoint[BEST])


def score(figures: Mapping[str, float], monitor: str) -> float:
    """How good held-out figures are, larger is better: NaN after a divergence, lowest where a metric is undefined."""
    if math.isnan(figures.get("loss", 0.0)):
        return math.nan
    if monitor == "loss":
        return -figures["loss"]
    return -math.inf if math.isnan(figures[monitor]) else figures[monitor]
