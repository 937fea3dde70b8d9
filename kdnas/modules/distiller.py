"""The student distiller: k students learn from one teacher."""

from __future__ import annotations

import copy
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import takewhile
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor, nn
from torchmetrics import SumMetric
from transformers import BatchEncoding, PreTrainedConfig, PreTrainedModel

from kdnas.base.errors import ConfigError
from kdnas.base.host import QuietHost
from kdnas.distillation.objectives import Objective
from kdnas.distillation.recipes import Recipe, Stage
from kdnas.distillation.teacher import Corpus, Needs, OnlineTeacher, Teacher, TeacherOutputs
from kdnas.models.architecture import Architecture
from kdnas.models.checkpoints import load_encoder_into
from kdnas.models.families import architecture_of
from kdnas.models.heads import unfreezing_groups
from kdnas.models.loading import load_tokenizer, student_config, take_padding
from kdnas.models.packing import Layout, Outputs, outputs
from kdnas.models.trial import check_architecture
from kdnas.modules.base import ExportingModule
from kdnas.training.gradients import at_once, is_out_of_memory
from kdnas.training.split_metrics import SplitMetrics
from kdnas.training.student_threads import SideBySide, draws, places
from kdnas.training.trainer import balanced, total

log = logging.getLogger(__name__)
LOST = "lost"
"""The checkpoint's key for which students ran out of memory."""


class Student(nn.Module):
    """One student with its objectives, one for each stage, and its metrics."""

    model: PreTrainedModel
    held_out_loss: SumMetric
    held_out_count: SumMetric

    def __init__(
        self,
        config: PreTrainedConfig,
        teacher: PreTrainedConfig,
        recipe: Recipe,
        seed: int,
        initial: str | None = None,
        also: Sequence[str] = (),
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        self.model = recipe.head.new(config, seed, dropout)
        if initial:
            encoder: Any = self.model.base_model
            load_encoder_into(encoder, initial)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.aims = [stage.objective(config, teacher) for stage in recipe.stages]
        self.objectives = nn.ModuleList(self.aims)
        self.stage = 0
        self.lost = False
        self.compiled: Callable[..., Any] | None = None
        # Two sums, since a MeanMetric drops NaN values, or else its weights.
        self.held_out_loss, self.held_out_count = SumMetric("disable"), SumMetric("disable")
        self.metrics = SplitMetrics(recipe.task, also)

    def compile_encoder(self) -> None:
        """Compiles the encoder with dynamic shapes, at its first use."""
        self.__dict__["compiled"] = torch.compile(self.model.base_model, dynamic=True)  # not registered as a submodule

    @property
    def objective(self) -> Objective:
        """The current stage's objective."""
        return self.aims[self.stage]

    def unfreeze(self, share: float) -> None:
        """Makes a share of the model's layers trainable, top-down: from the head alone (0) to all (1)."""
        self.model.requires_grad_(True)
        if share < 1:
            groups = unfreezing_groups(self.model)
            for group in groups[1 + round(share * (len(groups) - 1)) :]:
                for parameter in group:
                    parameter.requires_grad_(False)

    def lose(self) -> None:
        """Stops training this student of a gang, because it ran out of memory. The others go on."""
        self.lost = True
        self.zero_grad()

    def forward(self, batch: BatchEncoding, teacher: Outputs) -> tuple[Tensor, Outputs]:
        """Returns the distillation loss of a batch, and the student's outputs."""
        own = outputs(self.model, batch, self.objective.student_layers, self.compiled)
        return self.objective(own, teacher, batch), own

    def begin(self) -> None:
        """Resets the held-out loss and metrics."""
        self.held_out_loss.reset()
        self.held_out_count.reset()
        self.metrics.reset()

    def watch(self, batch: BatchEncoding, teacher: Outputs, split: int) -> None:
        """Updates the metrics with a held-out batch, and the loss if the batch is of the first split."""
        loss, own = self(batch, teacher)
        if split == 0:
            count = self.objective.count(batch)
            self.held_out_loss.update(loss * count)
            self.held_out_count.update(count)
        if self.metrics.names:
            assert own.logits is not None
            self.metrics.update(split, own.logits, batch["labels"])

    def figures(self) -> dict[str, float]:
        """Returns the held-out loss and metrics, over all items; NaN for a lost student."""
        if self.lost:
            return dict.fromkeys(["loss", *self.metrics.names], math.nan)
        loss = float(self.held_out_loss.compute() / self.held_out_count.compute())
        return {"loss": loss, **self.metrics.compute()}


class StudentDistiller(ExportingModule):
    """Distils k >= 1 students from one teacher; a single student is the case k = 1.

    The students share each batch and the teacher's outputs for it, and nothing else: each has its own initialisation
    (from the seed alone, independent of its place in the gang), gradient clipping, metrics and best weights. A recipe
    of several stages is one fit: every stage begins with the best weights of the previous one, a new optimizer state
    and a new learning rate schedule.

    Args:
        teacher: the teacher's path or hub id; checkpoints hold its tokenizer and never its weights.
        architectures: one for each student.
        objective: the recipe (see `kdnas.distillation.recipes`).
        learning_rate: the peak learning rate of stages that have none of their own.
        warmup: the share of a stage's steps over which the learning rate rises.
        betas, weight_decay: arguments of AdamW.
        dropout: the students' dropout while they are distilled; None for the teacher's. Exported configs always have
            the teacher's.
        seed: the seed of the students' initial weights.
        initial: a checkpoint, folder or hub id whose encoder the students start from; None for random weights.
        also: the names of the held-out splits besides the first; their metrics decide nothing.
        compile: whether to compile the students by `torch.compile`.
        outputs: the source of the teacher's outputs; None runs the teacher on every batch.
        depths: the numbers of layers of further students that will be trained on the same rows; the teacher outputs
            that they need are cached too.

    Logs:
        `train/loss`, `val/loss` and `val/<metric>`: the means over students; for several, `val/loss/<i>` and so on.
    """

    def __init__(
        self,
        teacher: str,
        architectures: Sequence[Architecture],
        objective: Recipe,
        learning_rate: float = 8e-4,
        warmup: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.01,
        dropout: float | None = None,
        seed: int = 0,
        initial: str | None = None,
        also: Iterable[str] | None = None,
        compile: bool = False,
        outputs: TeacherOutputs | None = None,
        depths: Iterable[int] = (),
    ) -> None:
        super().__init__(learning_rate, warmup, betas, weight_decay)
        if not architectures:
            raise ConfigError("architectures=[]: must name at least one student")
        self.recipe, self.head, self.initial = objective, objective.head, initial
        self.teacher_path, self.outputs, self.depths = teacher, outputs or OnlineTeacher(), depths
        self.teacher_config = objective.head.config(teacher)
        self.tokenizer = load_tokenizer(teacher)
        configs = [student_config(self.teacher_config, architecture) for architecture in architectures]
        for config in configs:
            take_padding(config, self.tokenizer)
            check_architecture(config)
            self.head.describe(config)
        self.class_order: tuple[int, ...] | None = None
        self.students = nn.ModuleList(
            Student(config, self.teacher_config, objective, seed, initial, list(also or ()), dropout)
            for config in configs
        )
        for student in self.trainees if compile else ():
            student.compile_encoder()
        self.teacher: TeacherOutputs | None = None
        self.threads: SideBySide | None = None
        self.epochs = objective.epochs
        unlabelled = takewhile(lambda aim: not aim.needs_labels, self.trainees[0].aims)
        self.transfer_epochs = sum(stage.epochs or 0 for stage, _ in zip(objective.stages, unlabelled, strict=False))

    @property
    def trainees(self) -> list[Student]:
        return [student for student in self.students if isinstance(student, Student)]

    @property
    def architectures(self) -> list[Architecture]:
        return [architecture_of(student.model.config) for student in self.trainees]

    @property
    def exports(self) -> dict[str, PreTrainedModel]:
        return {f"students.{i}.model.": student.model for i, student in enumerate(self.trainees)}

    @property
    def source_config(self) -> PreTrainedConfig:
        return self.teacher_config

    @property
    def held_out(self) -> Sequence[SplitMetrics]:
        return [student.metrics for student in self.trainees]

    @property
    def about(self) -> dict[str, str]:
        stages = ", then ".join(stage.name.replace("_", " ") for stage in self.recipe.stages)
        initial = {"initial weights": self.initial} if self.initial else {}
        return {"distilled from": self.teacher_path, "objective": stages, **initial}

    def name_classes(self, names: Sequence[str] | None) -> None:
        """Names the students' classes after the data's, and finds the order of the teacher's logits by their names.

        Raises:
            ConfigError: the teacher's classes have other names.
        """
        super().name_classes(names or self.head.names_of_teacher(self.teacher_config))
        self.class_order = self.head.teacher_order(self.teacher_path, self.teacher_config, names)

    def check_teacher(self) -> None:
        """Loads the teacher, if it is needed, and refuses weights that are damaged, do not fit or are not finite."""
        if self.needs:
            self.recipe.head.load(self.teacher_path)

    def check(self, masked: bool) -> None:
        aims = self.trainees[0].aims
        if not masked and any(aim.needs_masks for aim in aims):
            raise ConfigError("data.masking=null: leaves no tokens to predict; must be set, as by data/masking=bert")
        if masked and any(aim.needs_labels for aim in aims):
            raise ConfigError("data.masking: takes the place of the labels that the objective needs; must be null")
        if self.needs:
            self.outputs.check(masked)

    # -- stages

    @property
    def stage(self) -> Stage:
        return self.recipe.stages[self.trainees[0].stage]

    @property
    def monitor(self) -> str:  # type: ignore[override]
        return self.stage.monitor

    @property
    def peak(self) -> float:
        return self.stage.learning_rate or self.learning_rate

    @property
    def peak_key(self) -> str:
        return f"objective.{self.stage.name}.learning_rate" if self.stage.learning_rate else super().peak_key

    @property
    def phase(self) -> str:  # type: ignore[override]
        index, _ = self.recipe.stage_at(self.current_epoch)
        many = len(self.recipe.stages) > 1
        return f"stage {index + 1}/{len(self.recipe.stages)} {self.stage.name}" if many else ""

    def progress(self, batch_idx: int) -> float:
        if self.stage.epochs is None:
            return super().progress(batch_idx)
        _, before = self.recipe.stage_at(self.current_epoch)
        return (before + batch_idx / self.trainer.num_training_batches) / self.stage.epochs

    def on_train_epoch_start(self) -> None:
        index, before = self.recipe.stage_at(self.current_epoch)
        if index and not before:
            self.best.restore()
            self.trainer.optimizers[0].state = defaultdict(dict)
        stage = self.recipe.stages[index]
        for student in self.trainees:
            student.stage = index
            student.unfreeze(before / (stage.epochs - 1) if stage.gradual and stage.epochs and stage.epochs > 1 else 1)

    # -- the teacher

    @property
    def needs(self) -> Needs:
        """All teacher outputs that the run, and students of the other `depths`, will need."""
        own = (aim.needs for student in self.trainees for aim in student.aims)
        asked = Needs.all(own) | Needs.all(self._needs_at(depth) for depth in self.depths)
        return asked | Needs(logits=bool(asked and self.recipe.metrics))  # for the teacher's own metrics

    def _needs_at(self, depth: int) -> Needs:
        if depth > self.teacher_config.num_hidden_layers:  # such students are refused
            return Needs()
        config = copy.deepcopy(self.trainees[0].model.config)
        config.num_hidden_layers = depth
        return self.recipe.needs(config, self.teacher_config)

    def open_teacher(self, trainer: Trainer, corpus: Corpus | None) -> None:
        """Prepares the teacher's outputs for a corpus (see `TeacherOutputs.open`)."""
        if self.needs:
            context, device = trainer.precision_plugin.forward_context, trainer.strategy.root_device
            self._open(self.outputs, trainer.precision, context, corpus, device)

    def _open(self, outputs: TeacherOutputs, precision: str, context: Any, corpus: Corpus | None, device: Any) -> None:
        known = (self.teacher_path, self.head, self.teacher_config)
        teacher = Teacher(*known, precision, context, self.class_order)
        self.teacher = outputs.open(teacher, corpus, self.needs, device)

    def ask_teacher(self, batch: BatchEncoding) -> Outputs:
        """Returns the teacher outputs that the current objectives need, which may be none."""
        needs = Needs.all(student.objective.needs for student in self.trainees)
        if not needs:
            return Outputs()
        if self.teacher is None:  # the module is used without `kdnas.app.run`
            self._open(OnlineTeacher(), "32-true", nullcontext, None, self.device)
        assert self.teacher is not None
        with self._part("ask teacher"):
            return self.teacher(batch, needs)

    def _part(self, name: str) -> AbstractContextManager[None]:
        """Measures a named part of the step with the Trainer's profiler, if there is one."""
        trainer: Any = self._trainer
        return trainer.profiler.profile(name) if trainer is not None else nullcontext()

    def on_fit_start(self) -> None:
        self._share_cores()
        objectives = [o for student in self.trainees for o in student.aims if o.normalize]
        if objectives and self.trainer.ckpt_path is None:
            trainer: Any = self.trainer
            loaders = trainer.datamodule.val_dataloader()
            variances = self._teacher_variances(loaders[0] if isinstance(loaders, list) else loaders)
            for objective in objectives:
                objective.calibrate(variances)

    @torch.no_grad()
    def _teacher_variances(self, batches: Iterable[BatchEncoding]) -> dict[int, float]:
        """Returns each teacher layer's variance over the held-out tokens of all devices, averaged over features."""
        layers = Needs.all(student.objective.needs for student in self.trainees).states
        zero = torch.zeros((), dtype=torch.double, device=self.device)
        count, sums, squares = zero, dict.fromkeys(layers, zero), dict.fromkeys(layers, zero)
        with QuietHost().busy():
            for batch in batches:
                for layer, states in self.ask_teacher(batch.to(self.device)).states.items():
                    sums[layer] = sums[layer] + states.double().sum(0)
                    squares[layer] = squares[layer] + states.double().square().sum(0)
                count = count + batch["attention_mask"].sum()
        moments = {j: (total(sums[j]) / total(count), total(squares[j]) / total(count)) for j in sorted(layers)}
        return {j: float((square - mean.square()).mean()) for j, (mean, square) in moments.items()}

    # -- training and validation

    def _share_cores(self) -> None:
        """Trains the students of a gang in parallel threads on a CPU, where results change by rounding alone."""
        self.threads, several = None, min(len(self.trainees), places())
        changes = any(draws(student.model) or student.compiled is not None for student in self.trainees)
        if several > 1 and self.device.type == "cpu" and self.trainer.world_size == 1 and not changes:
            self.threads = SideBySide(several, self.trainer.precision_plugin.forward_context)

    @property
    def _left(self) -> list[Student]:
        """The students that are still trained, the largest first: threads then end at about the same time."""
        return sorted(
            (student for student in self.trainees if not student.lost),
            key=lambda student: architecture_of(student.model.config).size,
            reverse=True,
        )

    def training_step(self, batch: BatchEncoding, _: int) -> Tensor:
        teacher, students = self.ask_teacher(batch), self._left
        losses: list[Tensor | None] = [None] * len(students)
        if self.threads:
            Layout.of(batch)  # computed once, before the threads need it
            with self._part("side by side"):
                losses = self.threads.map(lambda student: self._learn_beside(student, batch, teacher), students)
        every = torch.stack(
            [
                self._learn(student, batch, teacher) if loss is None else loss
                for student, loss in zip(students, losses, strict=True)
            ]
        )
        # The students' parameters are disjoint, so the gradient of the sum is each student's own.
        self.log("train/loss", every.detach().mean(), prog_bar=True, sync_dist=True)
        return every.sum()

    def _loss(self, student: Student, batch: BatchEncoding, teacher: Outputs) -> Tensor:
        """Computes a student's loss; in a gang, also runs its backward pass at once, which frees its activations."""
        loss = balanced(student(batch, teacher)[0], student.objective.count(batch))
        if len(self.trainees) == 1:
            return loss
        with nullcontext() if self.threads else self._part("backward"):
            return at_once(loss, list(student.parameters()), 1 / self.trainer.accumulate_grad_batches)

    def _learn_beside(self, student: Student, batch: BatchEncoding, teacher: Outputs) -> Tensor | None:
        """Computes a student's loss in a thread beside others; returns None if it runs out of memory."""
        try:
            return self._loss(student, batch, teacher)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return None

    def _learn(self, student: Student, batch: BatchEncoding, teacher: Outputs) -> Tensor:
        """Computes a student's loss alone. A student of a gang that runs out of memory is lost; the others go on."""
        try:
            return self._loss(student, batch, teacher)
        except (RuntimeError, MemoryError) as error:
            left = [other for other in self.trainees if other is not student and not other.lost]
            if not is_out_of_memory(error) or not left or self.trainer.world_size > 1:
                raise
        student.lose()  # outside of the handler, whose traceback keeps the memory in use
        log.warning("%s: does not fit into memory beside the others of its gang", architecture_of(student.model.config))
        return torch.zeros((), device=self.device)

    def on_validation_epoch_start(self) -> None:
        for student in self.trainees:
            student.begin()

    def validation_step(self, batch: BatchEncoding, _: int, dataloader_idx: int = 0) -> None:
        teacher = self.ask_teacher(batch)
        if self.threads:
            Layout.of(batch)
            self.threads.map(lambda student: student.watch(batch, teacher, dataloader_idx), self._left)
            return
        for student in self._left:
            student.watch(batch, teacher, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        self.results = [student.figures() for student in self.trainees]
        self.judge(lost=[i for i, student in enumerate(self.trainees) if student.lost])
        for name in self.results[0]:
            values = [figures[name] for figures in self.results]
            if len(values) > 1:
                self.log_dict({f"val/{name}/{i}": value for i, value in enumerate(values)}, sync_dist=True)
            there = [value for value, student in zip(values, self.trainees, strict=True) if not student.lost]
            self.log(f"val/{name}", sum(there) / len(there), prog_bar=True, sync_dist=True)

    def refuse_lost(self) -> None:
        """Raises an error if students were lost.

        Raises:
            ConfigError: some students ran out of memory.
        """
        lost = [str(one) for one, student in zip(self.architectures, self.trainees, strict=True) if student.lost]
        if lost:
            raise ConfigError(f"architectures={', '.join(lost)}: no memory for it beside the others; must be alone")

    # -- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[LOST] = [student.lost for student in self.trainees]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        # Nothing is frozen yet: DDP registers the parameters that require gradients when the fit begins, not later.
        for student, lost in zip(self.trainees, checkpoint[LOST], strict=True):
            student.stage, _ = self.recipe.stage_at(checkpoint["epoch"])
            student.lost = lost
