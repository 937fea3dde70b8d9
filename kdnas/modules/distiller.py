"""The student distiller: k students learn from one teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import SumMetric
from transformers import BatchEncoding, PreTrainedConfig, PreTrainedModel

from kdnas.architecture import Architecture
from kdnas.checkpoints import PACK, pack
from kdnas.distillation.objectives import HiddenStateObjective
from kdnas.distillation.teacher import HiddenStates, OnlineTeacher, TeacherOutputs, hidden_states
from kdnas.errors import ConfigError
from kdnas.latency import QuietHost
from kdnas.models import architecture_of, load_encoder, load_tokenizer, new_encoder, student_config
from kdnas.modules.base import ExportingModule
from kdnas.modules.optimization import adamw, linear_schedule

ObjectiveFactory = Callable[[PreTrainedConfig, PreTrainedConfig], HiddenStateObjective]


class Student(nn.Module):
    """One student with its objective: everything that one architecture trains."""

    model: PreTrainedModel
    objective: HiddenStateObjective
    held_out_loss: SumMetric
    held_out_tokens: SumMetric

    def __init__(
        self, config: PreTrainedConfig, teacher: PreTrainedConfig, objective: ObjectiveFactory, seed: int
    ) -> None:
        super().__init__()
        self.model = new_encoder(config, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.objective = objective(config, teacher)
        # Two sums and not a MeanMetric, which drops what is NaN, or else the weights.
        self.held_out_loss, self.held_out_tokens = SumMetric("disable"), SumMetric("disable")

    def forward(self, batch: BatchEncoding, teacher: HiddenStates) -> Tensor:
        """The distillation loss of a batch."""
        states = hidden_states(self.model, batch, {i for i, _ in self.objective.pairs})
        return self.objective(states, teacher)


class StudentDistiller(ExportingModule):
    """Distils k >= 1 students from one teacher; a single student is the case k = 1.

    The students share each batch and the teacher's pass over it, and nothing else: every one has its own
    initialisation (from the seed alone, so its place in the gang changes nothing), gradient clipping and metrics.

    Args:
        teacher: path or hub id of the teacher; the checkpoint keeps its tokenizer and never its weights.
        architectures: one for each student.
        objective: called with the student's and the teacher's config.
        learning_rate: the peak of a linear schedule.
        warmup: the share of all steps over which the learning rate rises.
        betas, weight_decay: AdamW's.
        dropout: the students'; None keeps the teacher's.
        seed: of the students' initial weights.

    Logs:
        `train/loss` and `val/loss`, the means over students; `val/loss/<i>` for each, over all held-out tokens.
    """

    monitor, mode = "val/loss", "min"
    measures = ("loss",)
    """The held-out figures that a reward can be made of."""

    def __init__(
        self,
        teacher: str,
        architectures: Sequence[Architecture],
        objective: ObjectiveFactory,
        learning_rate: float = 8e-4,
        warmup: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.01,
        dropout: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not architectures:
            raise ConfigError("architectures=[]: must name at least one student")
        model = load_encoder(teacher)
        self.teacher: TeacherOutputs = OnlineTeacher(model)
        self.teacher_config = model.config
        self.tokenizer = load_tokenizer(teacher)
        self.students = nn.ModuleList(
            Student(student_config(model.config, architecture, dropout), model.config, objective, seed)
            for architecture in architectures
        )
        self.learning_rate, self.warmup, self.betas, self.weight_decay = learning_rate, warmup, betas, weight_decay
        self.layers = {layer for student in self.trainees for layer in student.objective.teacher_layers}

    @property
    def trainees(self) -> list[Student]:
        return [student for student in self.students if isinstance(student, Student)]

    @property
    def architectures(self) -> list[Architecture]:
        return [architecture_of(student.model.config) for student in self.trainees]

    @property
    def exports(self) -> dict[str, PreTrainedModel]:
        return {f"students.{i}.model.": student.model for i, student in enumerate(self.trainees)}

    def on_fit_start(self) -> None:
        self.teacher.to(self.device)
        objectives = [student.objective for student in self.trainees if student.objective.normalize]
        if objectives and self.trainer.ckpt_path is None:
            trainer: Any = self.trainer
            with QuietHost().busy():
                variances = self._teacher_variances(trainer.datamodule.val_dataloader())
            for objective in objectives:
                objective.calibrate(variances)

    def on_validation_start(self) -> None:
        self.teacher.to(self.device)

    @torch.no_grad()
    def _teacher_variances(self, batches: Iterable[BatchEncoding]) -> dict[int, float]:
        """The mean over features of each teacher layer's variance over the held-out tokens."""
        count = 0
        total, squares = ({layer: torch.zeros((), dtype=torch.double) for layer in self.layers} for _ in range(2))
        for batch in batches:
            for layer, states in self.teacher(batch.to(self.device), self.layers).items():
                total[layer] = total[layer] + states.double().sum(0).cpu()
                squares[layer] = squares[layer] + states.double().square().sum(0).cpu()
            count += int(batch["attention_mask"].sum())
        return {j: float((squares[j] / count - (total[j] / count).square()).mean()) for j in self.layers}

    def training_step(self, batch: BatchEncoding, _: int) -> Tensor:
        teacher = self.teacher(batch, self.layers)
        # The students' parameters are disjoint, so the gradient of the sum is each one's own.
        losses = torch.stack([student(batch, teacher) for student in self.trainees])
        self.log("train/loss", losses.detach().mean(), prog_bar=True, batch_size=len(batch["input_ids"]))
        return losses.sum()

    def on_validation_epoch_start(self) -> None:
        for student in self.trainees:
            student.held_out_loss.reset()
            student.held_out_tokens.reset()

    def validation_step(self, batch: BatchEncoding, _: int) -> None:
        teacher = self.teacher(batch, self.layers)
        tokens = batch["attention_mask"].sum()
        for student in self.trainees:
            student.held_out_loss.update(student(batch, teacher) * tokens)
            student.held_out_tokens.update(tokens)

    def on_validation_epoch_end(self) -> None:
        losses = [student.held_out_loss.compute() / student.held_out_tokens.compute() for student in self.trainees]
        for i, loss in enumerate(losses):
            self.log(f"val/loss/{i}", loss)
        self.log("val/loss", torch.stack(losses).mean(), prog_bar=True)
        self.results = [{"loss": float(loss)} for loss in losses]

    def configure_optimizers(self) -> Any:
        optimizer = adamw(self.students, self.learning_rate, self.betas, self.weight_decay, self.trainer.precision)
        return linear_schedule(optimizer, self.warmup, int(self.trainer.estimated_stepping_batches))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[PACK] = pack(self.exports, self.tokenizer)
        checkpoint["architectures"] = [architecture.to_dict() for architecture in self.architectures]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        theirs = ", ".join(str(Architecture.of(values)) for values in checkpoint.get("architectures", []))
        ours = ", ".join(str(architecture) for architecture in self.architectures)
        if theirs != ours:
            raise ConfigError(f"checkpoint: holds {theirs or 'no student'}; this run trains {ours}")
