"""Fine-tuning of a distilled encoder on a task."""

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import BatchEncoding

from kdnas.base.errors import ConfigError, mounted, require
from kdnas.models.checkpoints import ModelSource
from kdnas.models.forward import outputs
from kdnas.modules.base import ExportingModule
from kdnas.tasks import LabelledTask
from kdnas.training.split_metrics import SplitMetrics
from kdnas.training.trainer import balanced


class FineTuner(ExportingModule):
    """A model with the head of a task, trained on the task's labels.

    Args:
        also: the names of further held-out splits, whose loaders follow the first; their metrics decide nothing.

    Logs:
        `train/loss`, and `val/<metric>` over all held-out rows; for a further split, `val/<metric>_<split>`.
    """

    def __init__(
        self,
        source: ModelSource,
        task: LabelledTask,
        also: Iterable[str] | None = None,
        learning_rate: float = 2e-5,
        warmup: float = 0.06,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(learning_rate, warmup, betas, weight_decay)
        require(isinstance(task, LabelledTask), "task", task, "a task, as task=rte")
        self.task, self.head = task, task.head
        with mounted("source"):
            self.model, self.tokenizer = source(task.head)
        self.source_config, self.exports, self.trainees = self.model.config, {"model.": self.model}, [self.model]
        self.about = {"fine-tuned from": source.origin} if source.origin else {}
        self.model.train()  # `from_pretrained` returns models in evaluation mode, and Lightning keeps it
        self.monitor = next(iter(task.metrics))
        self.metrics = SplitMetrics(task, also)
        self.held_out = [self.metrics]

    def check(self, masked: bool) -> None:
        if masked:
            raise ConfigError("data.masking: hides the labels of a task; must be left out of fine-tuning")

    def forward(self, batch: BatchEncoding) -> Tensor:
        """Returns the logits of a batch, (rows, num_labels)."""
        return outputs(self.model, batch, {self.task.feature})[self.task.feature]

    def training_step(self, batch: BatchEncoding, _: int) -> Tensor:
        rows = torch.full((), len(batch["labels"]), device=self.device)
        loss = balanced(self.task.loss(self(batch), batch["labels"]), rows)
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.metrics.reset()

    def validation_step(self, batch: BatchEncoding, _: int, dataloader_idx: int = 0) -> None:
        self.metrics.update(dataloader_idx, self(batch), batch["labels"])

    def on_validation_epoch_end(self) -> None:
        self.results = [self.metrics.compute()]
        self.record_divergence()
        self.log_dict({f"val/{name}": value for name, value in self.results[0].items()}, prog_bar=True, sync_dist=True)
