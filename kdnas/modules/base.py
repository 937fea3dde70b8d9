"""The base class of the LightningModules: training, validation on held-out data, and models to export."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from kdnas.base.errors import ConfigError
from kdnas.base.metrics import quality
from kdnas.models.checkpoints import PACK, architectures, pack
from kdnas.models.families import architecture_of
from kdnas.models.heads import Head
from kdnas.training.best_weights import BestWeights
from kdnas.training.optimization import adamw, check_optimization, linear
from kdnas.training.split_metrics import SplitMetrics

BEST = "best"
"""The checkpoint's key for the best weights so far."""
CLIP: Mapping[str, Any] = {"norm": nn.utils.clip_grad_norm_, "value": nn.utils.clip_grad_value_}
DIVERGED = "diverged"
"""The checkpoint's key for the trainees that have diverged."""


class DivergedError(ConfigError):
    """A training produced numbers that are not finite. The message names the learning rate to lower."""


class ExportingModule(L.LightningModule):
    """A LightningModule around Hugging Face models, trained by AdamW on a linear schedule.

    Args:
        learning_rate: the peak learning rate.
        warmup: the share of all steps over which the learning rate rises; then it falls linearly to zero.

    Attributes:
        source_config: the config of the model that the tokenizer came with.
        head: the kind of the models, with their classes.
        exports: the models to export, by the prefix of their weights in the state dict.
        trainees: the modules that are trained independently of each other.
        held_out: the metrics of each trainee on held-out data; empty for an objective without metrics.
        about: how the models were made, by heading, for the model card.
        monitor: the held-out metric that decides which weights are the best; larger is better, except of `loss`.
        results: the held-out metrics of the last validation, for each trainee.
        diverged: the reasons of the trainees that have diverged, by index. They are never trained again.
        lost: the indices of the trainees that ran out of memory.
        phase: the name of the current stage, if the training has several.
        epochs: the number of epochs; None where the Trainer decides.
        transfer_epochs: the number of first epochs that need no labels.
    """

    tokenizer: Tokenizer
    source_config: PreTrainedConfig
    head: Head
    exports: dict[str, PreTrainedModel]
    trainees: Sequence[nn.Module]
    held_out: Sequence[SplitMetrics]
    about: dict[str, str]
    monitor: str
    phase = ""
    lost: Sequence[int] = ()
    epochs: int | None = None
    transfer_epochs = 0

    def __init__(self, learning_rate: float, warmup: float, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__()
        check_optimization(learning_rate, warmup, betas, weight_decay)
        self.learning_rate, self.warmup, self.betas, self.weight_decay = learning_rate, warmup, betas, weight_decay
        self.results: list[dict[str, float]] = []
        self.diverged: dict[int, str] = {}
        self._best: BestWeights | None = None

    def name_classes(self, names: Sequence[str] | None) -> None:
        """Writes the names of the data's classes into the models' configs; None if they have no names."""
        for model in self.exports.values():
            self.head.describe(model.config, names)

    @property
    def best(self) -> BestWeights:
        """The weights with the best held-out metric so far."""
        if self._best is None:
            self._best = BestWeights(self.trainees)
        return self._best

    def check(self, masked: bool) -> None:
        """Refuses data that the module cannot be trained on; `masked` says whether its tokens are masked."""

    def on_validation_end(self) -> None:
        # The metrics of different devices may differ in the last digit: the first device decides for all.
        self.results = self.trainer.strategy.broadcast(self.results)
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            scores = [score(metrics, self.monitor) for metrics in self.results]
            self.best.update([math.nan if i in self.diverged else value for i, value in enumerate(scores)])

    # -- divergence

    def record_divergence(self) -> None:
        """Records which trainees diverged; stops a training with none left."""
        if self.trainer.sanity_checking:
            return
        for i in set(range(len(self.trainees))).difference(self.lost, self.diverged):
            if reason := self._divergence(i):
                self.diverged[i] = f"{reason} {self._now}"
        self.diverged = self.trainer.strategy.broadcast(self.diverged)
        if len({*self.diverged, *self.lost}) == len(self.trainees):
            self.trainer.should_stop = True

    def _divergence(self, i: int) -> str | None:
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
        """The loss of the last training step; 0 where it does not tell whether the weights are finite."""
        # In fp16, the loss scaler skips a step whose loss overflows.
        known = len(self.trainees) == 1 and self.trainer.precision != "16-mixed"
        return float(self.trainer.callback_metrics.get("train/loss", 0.0)) if known else 0.0

    @property
    def _now(self) -> str:
        if self.trainer.state.fn != TrainerFn.FITTING:
            return "at the end"
        return f"in {self.phase + ', ' if self.phase else ''}epoch {self.trainer.current_epoch + 1}"

    def refuse_diverged(self) -> None:
        """Raises a `DivergedError` if a trainee has diverged."""
        models = list(self.exports.values())
        for i, reason in self.diverged.items():
            of = f" of {architecture_of(models[i].config)}" if len(models) > 1 else ""
            raise DivergedError(f"{self.peak_key}={self.peak}: must be lower; the training{of} diverged: {reason}")

    # -- optimization

    def configure_optimizers(self) -> Optimizer:
        return adamw(self, self.learning_rate, self.betas, self.weight_decay, self.trainer.precision)

    @property
    def peak(self) -> float:
        return self.learning_rate

    @property
    def peak_key(self) -> str:
        """The setting that `peak` comes from."""
        return "module.learning_rate"

    def progress(self, batch_idx: int) -> float:
        """Returns the progress of the learning rate schedule at a batch of the current epoch, from 0 to 1."""
        return self.trainer.global_step / self.trainer.estimated_stepping_batches

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Not a scheduler: a function of the progress has no state to restore, and can start anew with every stage.
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.peak * linear(self.progress(batch_idx), self.warmup)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips each trainee's gradients separately. Lightning's own clipping refuses fused optimizers."""
        clip = CLIP[gradient_clip_algorithm or "norm"]
        for trainee in self.trainees if gradient_clip_val else ():
            clip(trainee.parameters(), gradient_clip_val)

    def on_train_start(self) -> None:
        # Checkpoints are saved at the end of an epoch. With `max_steps`, Lightning resumes within that epoch, finds no
        # batches left, and counts it again: later epochs would have other numbers than in a run without interruption.
        loop = self.trainer.fit_loop
        if loop.restarted_on_epoch_end:
            loop.epoch_progress.increment_completed()
            loop.reset_restart_stage()
            loop.epoch_loop.restarting = False

    def on_train_batch_end(self, *_: Any) -> None:
        # Lightning validates at the end of an epoch, but not if `max_steps` ends it early.
        if self.trainer.global_step == self.trainer.max_steps:
            self.trainer.should_stop = True

    # -- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[PACK] = pack(self.exports, self.tokenizer)
        checkpoint[BEST] = self.best.state_dict()
        checkpoint[DIVERGED] = self.diverged

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = ", ".join(str(architecture) for architecture in architectures(checkpoint))
        trained = ", ".join(str(architecture_of(model.config)) for model in self.exports.values())
        if saved != trained:
            raise ConfigError(f"checkpoint: holds {saved or 'no student'}; this run trains {trained}")
        self.best.load_state_dict(checkpoint[BEST])
        self.diverged = dict(checkpoint.get(DIVERGED, {}))


def finite(model: nn.Module) -> bool:
    return not bool(sum((~value.isfinite()).any() for value in model.parameters()))  # one device sync


def score(metrics: Mapping[str, float], monitor: str) -> float:
    """Returns a score to compare epochs by, larger is better: NaN after a divergence, -inf for an undefined metric."""
    if not math.isfinite(metrics.get("loss", 0.0)):
        return math.nan
    value = quality(metrics, monitor)
    return -math.inf if math.isnan(value) else value
