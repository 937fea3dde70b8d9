"""What the modules here have in common: they are trained, judged on held-out data, and leave models behind."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from kdnas.checkpoints import PACK, architectures, pack
from kdnas.errors import ConfigError
from kdnas.families import architecture_of
from kdnas.models import Head
from kdnas.modules.best import BestWeights
from kdnas.modules.metrics import SplitMetrics
from kdnas.modules.optimization import adamw, check_optimization, linear

BEST = "best"
"""The key of the best weights so far in a checkpoint."""
CLIP: Mapping[str, Any] = {"norm": nn.utils.clip_grad_norm_, "value": nn.utils.clip_grad_value_}
"""How gradients are clipped, by Lightning's names."""
DIVERGED = "diverged"
"""The key of the trainees that have diverged in a checkpoint."""


class DivergedError(ConfigError):
    """A training ended in numbers that are not finite. The message names the learning rate to lower."""


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
        diverged: the reason, for each trainee that has diverged, by its number. Such a trainee has failed for good.
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
        self.diverged: dict[int, str] = {}
        self._best: BestWeights | None = None

    @property
    @abstractmethod
    def source_config(self) -> PreTrainedConfig:
        """The config of the model that the tokenizer came with."""

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
    def held_out(self) -> Sequence[SplitMetrics]:
        """Each trainee's metrics on held-out data; of an objective without any, none."""

    @property
    @abstractmethod
    def about(self) -> dict[str, str]:
        """What a model card says of the models' making."""

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
            scores = [score(figures, self.monitor) for figures in self.results]
            self.best.update([math.nan if i in self.diverged else value for i, value in enumerate(scores)])

    # -- divergence

    def judge(self, lost: Collection[int] = ()) -> None:
        """Notes which trainees have diverged, from `results` and the weights; ends a training that has none left.

        Args:
            lost: numbers of trainees that are not trained any more, and have no figures.
        """
        if self.trainer.sanity_checking:
            return
        for i in set(range(len(self.trainees))).difference(lost, self.diverged):
            if reason := self._divergence(i):
                self.diverged[i] = f"{reason} {self._now}"
        self.diverged = self.trainer.strategy.broadcast(self.diverged)
        if len({*self.diverged, *lost}) == len(self.trainees):
            self.trainer.should_stop = True

    def _divergence(self, i: int) -> str | None:
        """Which number of a trainee is not finite, if any."""
        if not math.isfinite(loss := self.results[i].get("loss", 0.0)):
            return f"held-out loss {loss}"
        if not self.held_out[i].finite:
            return "held-out predictions not finite"
        if not math.isfinite(loss := self._train_loss):
            return f"train loss {loss}"
        if not finite(self.trainees[i]):
            return "weights not finite"
        return None

    @property
    def _train_loss(self) -> float:
        """The last training step's; 0 where it says nothing of a single trainee's weights."""
        # Of a step whose loss overflows in fp16, the loss scaler makes none.
        tells = len(self.trainees) == 1 and self.trainer.precision != "16-mixed"
        return float(self.trainer.callback_metrics.get("train/loss", 0.0)) if tells else 0.0

    @property
    def _now(self) -> str:
        """The point of the training, for a message."""
        if self.trainer.state.fn != TrainerFn.FITTING:
            return "at the end"
        return f"in {self.phase + ', ' if self.phase else ''}epoch {self.trainer.current_epoch + 1}"

    def refuse_diverged(self) -> None:
        """Says that a trainee has diverged, if one has.

        Raises:
            DivergedError: one has.
        """
        models = list(self.exports.values())
        for i, reason in self.diverged.items():
            of = f" of {architecture_of(models[i].config)}" if len(models) > 1 else ""
            raise DivergedError(f"{self.peak_key}={self.peak}: must be lower; the training{of} diverged: {reason}")

    # -- optimization

    def configure_optimizers(self) -> Optimizer:
        return adamw(self, self.learning_rate, self.betas, self.weight_decay, self.trainer.precision)

    @property
    def peak(self) -> float:
        """The peak of the learning rate."""
        return self.learning_rate

    @property
    def peak_key(self) -> str:
        """The setting that `peak` comes from."""
        return "module.learning_rate"

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
        """Clips each trainee by itself. Lightning's own clipping refuses fused optimizers."""
        clip = CLIP[gradient_clip_algorithm or "norm"]
        for trainee in self.trainees if gradient_clip_val else ():
            clip(trainee.parameters(), gradient_clip_val)

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
        checkpoint[DIVERGED] = self.diverged

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        theirs = ", ".join(str(architecture) for architecture in architectures(checkpoint))
        ours = ", ".join(str(architecture_of(model.config)) for model in self.exports.values())
        if theirs != ours:
            raise ConfigError(f"checkpoint: holds {theirs or 'no student'}; this run trains {ours}")
        self.best.load_state_dict(checkpoint[BEST])
        self.diverged = dict(checkpoint.get(DIVERGED, {}))


def finite(model: nn.Module) -> bool:
    """Whether all of a model's weights are numbers that can be reckoned with."""
    return not bool(sum((~value.isfinite()).any() for value in model.parameters()))  # asks the device once


def score(figures: Mapping[str, float], monitor: str) -> float:
    """How good held-out figures are, larger is better: NaN after a divergence, lowest where a metric is undefined."""
    if not math.isfinite(figures.get("loss", 0.0)):
        return math.nan
    if monitor == "loss":
        return -figures["loss"]
    return -math.inf if math.isnan(figures[monitor]) else figures[monitor]
