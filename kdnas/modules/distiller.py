"""The student distiller: k students learn from one teacher."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor, nn
from transformers import BatchEncoding, PreTrainedConfig

from kdnas.base.errors import ConfigError
from kdnas.base.files import fingerprint
from kdnas.distillation.objective import Objective, Stage
from kdnas.distillation.teacher import Corpus, OnlineTeacher, Teacher, TeacherOutputs
from kdnas.models.architecture import Architecture
from kdnas.models.attention import check_features
from kdnas.models.classes import teacher_order
from kdnas.models.families import architecture_of, family_of
from kdnas.models.features import Feature, Features
from kdnas.models.initialisation import TOKENS, RandomWeights, StudentSource, TeacherAndText, Text
from kdnas.models.loading import load_encoder, load_tokenizer
from kdnas.models.resizing import StudentFamily, student_config, with_padding
from kdnas.models.trial import check_architecture
from kdnas.modules.base import ExportingModule
from kdnas.training.calibration import calibrate
from kdnas.training.gang import Gang
from kdnas.training.student import Student

LOST = "lost"
"""The checkpoint's key for which students ran out of memory."""


class StudentDistiller(ExportingModule):
    """Distils k >= 1 students from one teacher; a single student is the case k = 1.

    The students share each batch and the teacher's outputs for it, and nothing else: each has its own initialisation
    (from the seed and `init`, independent of its place in the gang), gradient clipping, metrics and best weights. An
    objective of several stages is one fit: every stage begins with the best weights of the previous one, a new
    optimizer state and a new learning rate schedule.

    Args:
        teacher: the teacher's path or hub id; checkpoints hold its tokenizer and never its weights.
        learning_rate: the peak learning rate of stages that have none of their own.
        warmup: the share of a stage's steps over which the learning rate rises.
        dropout: the students' dropout while they are distilled; None for the teacher's, which exported configs have.
        student: the students' model family; None for the teacher's.
        init: where the students' weights begin (see `kdnas.models.initialisation`); None for random weights.
        also: the names of the held-out splits besides the first; their metrics decide nothing.
        compile: whether to compile the students by `torch.compile`.
        outputs: the source of the teacher's outputs; None runs the teacher on every batch.
        depths: the numbers of layers of further students that will be trained on the same rows; the teacher outputs
            that they need are cached too. None for every number up to the teacher's.

    Logs:
        `train/loss`, `val/loss` and `val/<metric>`: the means over students; for several, `val/loss/<i>` and so on.
        In a stage of several terms also `train/loss_<term>` and `val/loss_<term>`, without weights.
    """

    def __init__(
        self,
        teacher: str,
        architectures: Sequence[Architecture],
        objective: Objective,
        learning_rate: float = 8e-4,
        warmup: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.01,
        dropout: float | None = None,
        seed: int = 0,
        student: StudentFamily | None = None,
        init: StudentSource | None = None,
        also: Iterable[str] | None = None,
        compile: bool = False,
        outputs: TeacherOutputs | None = None,
        depths: Iterable[int] | None = (),
    ) -> None:
        super().__init__(learning_rate, warmup, betas, weight_decay)
        if not architectures:
            raise ConfigError("architectures=[]: must name at least one student")
        self.objective, self.head, self.init = objective, objective.head, init or RandomWeights()
        self.teacher_path, self.outputs = teacher, outputs or OnlineTeacher()
        self.teacher_config = self.source_config = objective.head.config(teacher)
        self.depths = range(1, self.teacher_config.num_hidden_layers + 1) if depths is None else depths
        self.tokenizer = load_tokenizer(teacher)
        self.student_family = student
        configs = [self.student_config(architecture) for architecture in architectures]
        self.class_order: tuple[int, ...] | None = None
        self.trainees: list[Student] = [
            Student(config, self.teacher_config, objective, seed, list(also or ()), dropout) for config in configs
        ]
        self.students = nn.ModuleList(self.trainees)  # registers them as submodules
        self.architectures = [architecture_of(config) for config in configs]
        self.exports = {f"students.{i}.model.": student.model for i, student in enumerate(self.trainees)}
        self.held_out = [student.metrics for student in self.trainees]
        stages = ", then ".join(stage.name.replace("_", " ") for stage in objective.stages)
        self.about = {"distilled from": teacher, "objective": stages, "initial weights": self.init.origin}
        self.begun = False
        if not self.init.needs_text:
            self._begin(None)
        for trainee in self.trainees if compile else ():
            trainee.compile_encoder()
        self.teacher: TeacherOutputs | None = None
        self.gang = Gang(self.trainees, self._measured)
        self.epochs = objective.epochs
        unlabelled = takewhile(lambda stage: not any(t.needs_labels for t in stage.terms.values()), objective.stages)
        self.transfer_epochs = sum(stage.epochs or 0 for stage in unlabelled)

    def student_config(self, architecture: Architecture) -> PreTrainedConfig:
        """Returns a student's config; refuses (by a ConfigError) one that cannot be built, or not begin by `init`."""
        config = student_config(with_padding(self.teacher_config, self.tokenizer), architecture, self.student_family)
        check_architecture(config)
        self.init.check(config, self.teacher_config)
        self.head.describe(config)
        return config

    def name_classes(self, names: Sequence[str] | None) -> None:
        """Names the classes as the data's or else the teacher's, and finds the order of the teacher's logits."""
        known = self.head.names_of_teacher(self.teacher_config)
        super().name_classes(names or known)
        self.class_order = teacher_order(self.teacher_path, known, names)

    def check_teacher(self) -> None:
        """Loads the teacher, if it is needed, and refuses weights that are damaged, do not fit or are not finite."""
        if self.teacher_features:
            self.head.of_teacher(self.teacher_features).load(self.teacher_path)

    def check_objective(self, architecture: Architecture) -> None:
        """Refuses an architecture whose student cannot be trained with the objective, without making the student."""
        own = self.trainees[0].model.config
        config = family_of(own).resize(own, architecture)
        self.objective.teacher_features(config, self.teacher_config)

    def check(self, masked: bool) -> None:
        terms = self.trainees[0].all_terms
        check_features(self.teacher_config, self.teacher_features)
        check_features(self.trainees[0].model.config, {feature for term in terms for feature in term.student})
        if not masked and any(term.needs_masks for term in terms):
            raise ConfigError("data.masking=null: leaves no tokens to predict; must be set, as by data/masking=bert")
        if masked and any(term.needs_labels for term in terms):
            raise ConfigError("data.masking: takes the place of the labels that the objective needs; must be null")
        if self.teacher_features:
            self.outputs.check(masked)

    def initialise(self, text: Text) -> None:
        """Gives the students the first weights that need the rows of the training, before one that does not resume."""
        if not self.begun:
            self._begin(text)

    def _begin(self, text: Text | None) -> None:
        identity = fingerprint(Path(self.teacher_path)) or self.teacher_path
        for student in self.trainees:
            known = TeacherAndText(identity, lambda: load_encoder(self.teacher_path), text, student.relations)
            encoder: Any = student.model.base_model
            self.init(encoder, known)
        self.begun = True

    def fit_terms(self, text: Text, device: torch.device) -> None:
        """Fits what the loss terms learn, as projections, to students that begin near the teacher; after `initialise`
        and `open_teacher`, whose `device` this is.
        """

        def ask(batch: BatchEncoding, features: Collection[Feature]) -> Features:
            own = BatchEncoding({name: values for name, values in batch.items() if name != "layout"})
            return self.ask_teacher(own.to(device), features)

        batches = text.first(TOKENS) if self.init.fits_terms else []
        for student in self.trainees if batches else ():
            student.fit_terms(batches, ask)

    # -- stages

    @property
    def stage(self) -> Stage:
        return self.objective.stages[self.trainees[0].stage]

    @property
    def monitor(self) -> str:  # type: ignore[override]
        return self.stage.monitor or "loss"

    @property
    def peak(self) -> float:
        return self.stage.learning_rate or self.learning_rate

    @property
    def peak_key(self) -> str:
        return f"objective.{self.stage.name}.learning_rate" if self.stage.learning_rate else super().peak_key

    @property
    def phase(self) -> str:  # type: ignore[override]
        index, _ = self.objective.stage_at(self.current_epoch)
        many = len(self.objective.stages) > 1
        return f"stage {index + 1}/{len(self.objective.stages)} {self.stage.name}" if many else ""

    def progress(self, batch_idx: int) -> float:
        if self.stage.epochs is None:
            return super().progress(batch_idx)
        _, before = self.objective.stage_at(self.current_epoch)
        return (before + batch_idx / self.trainer.num_training_batches) / self.stage.epochs

    def on_train_epoch_start(self) -> None:
        index, before = self.objective.stage_at(self.current_epoch)
        if index and not before:
            self.best.restore()
            self.trainer.optimizers[0].state = defaultdict(dict)
        stage = self.objective.stages[index]
        for student in self.trainees:
            student.stage = index
            student.unfreeze(before / (stage.epochs - 1) if stage.gradual and stage.epochs and stage.epochs > 1 else 1)

    # -- the teacher

    @property
    def teacher_features(self) -> frozenset[Feature]:
        """All features of the teacher that the run, and students of the other `depths`, will need."""
        own = (term.teacher for student in self.trainees for term in student.all_terms)
        features = frozenset[Feature]().union(*own, *map(self._features_at, self.depths))
        task = self.objective.task
        return features | {task.feature} if features and task else features  # for the teacher's own metrics

    def _features_at(self, depth: int) -> frozenset[Feature]:
        if depth > self.teacher_config.num_hidden_layers:  # such students are refused
            return frozenset()
        own = self.trainees[0].model.config
        config = family_of(own).resize(own, replace(architecture_of(own), num_hidden_layers=depth))
        return self.objective.teacher_features(config, self.teacher_config)

    def open_teacher(self, trainer: Trainer, corpus: Corpus | None) -> None:
        """Prepares the teacher's features for a corpus (see `TeacherOutputs.open`)."""
        if self.teacher_features:
            context, device = trainer.precision_plugin.forward_context, trainer.strategy.root_device
            self._open(self.outputs, trainer.precision, context, corpus, device)

    def _open(self, outputs: TeacherOutputs, precision: str, context: Any, corpus: Corpus | None, device: Any) -> None:
        head = self.head.of_teacher(self.teacher_features)
        teacher = Teacher(self.teacher_path, head, self.teacher_config, precision, context, self.class_order)
        self.teacher = outputs.open(teacher, corpus, self.teacher_features, device)

    def ask_teacher(self, batch: BatchEncoding, features: Collection[Feature] | None = None) -> Features:
        """Returns features of the teacher for a batch; None for those of the current stage, which may be none."""
        if features is None:
            features = {feature for student in self.trainees for t in student.terms.values() for feature in t.teacher}
        if not features:
            return {}
        if self.teacher is None:  # the module is used without `kdnas.app.run`
            self._open(OnlineTeacher(), "32-true", nullcontext, None, self.device)
        assert self.teacher is not None
        with self._measured("ask teacher"):
            return self.teacher(batch, features)

    def _measured(self, name: str) -> AbstractContextManager[None]:
        trainer: Any = self._trainer
        return trainer.profiler.profile(name) if trainer is not None else nullcontext()

    def on_fit_start(self) -> None:
        if not self.begun and self.trainer.ckpt_path is None:
            raise ConfigError(f"student.init: {self.init.origin} need text; must call `initialise` before `fit`")
        self.gang.share_cores(self.device, self.trainer.precision_plugin.forward_context)
        terms = [term for student in self.trainees for term in student.all_terms if term.normalized_by]
        if terms and self.trainer.ckpt_path is None:
            trainer: Any = self.trainer
            loaders = trainer.datamodule.val_dataloader()
            calibrate(terms, loaders[0] if isinstance(loaders, list) else loaders, self.ask_teacher, self.device)

    # -- training and validation

    def training_step(self, batch: BatchEncoding, _: int) -> Tensor:
        trainer: Any = self._trainer
        # Gradients that are there before `backward` are divided here, as Lightning divides the loss.
        losses = self.gang.losses(batch, self.ask_teacher(batch), 1 / trainer.accumulate_grad_batches if trainer else 1)
        # The students' parameters are disjoint, so the gradient of the sum is each student's own.
        self.log("train/loss", losses.detach().mean(), prog_bar=True, sync_dist=True)
        for name in self.stage.terms if len(self.stage.terms) > 1 else ():
            mean = torch.stack([student.losses[name] for student in self.gang.remaining]).mean()
            self.log(f"train/loss_{name}", mean, sync_dist=True)
        return losses.sum()

    def on_validation_epoch_start(self) -> None:
        for student in self.trainees:
            student.begin()

    def validation_step(self, batch: BatchEncoding, _: int, dataloader_idx: int = 0) -> None:
        self.gang.watch(batch, self.ask_teacher(batch), dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        self.results = [student.results() for student in self.trainees]
        self.record_divergence()
        for name in self.results[0]:
            values = [result[name] for result in self.results]
            if len(values) > 1:
                self.log_dict({f"val/{name}/{i}": value for i, value in enumerate(values)}, sync_dist=True)
            there = [value for value, student in zip(values, self.trainees, strict=True) if not student.lost]
            self.log(f"val/{name}", sum(there) / len(there), prog_bar=True, sync_dist=True)

    @property
    def lost(self) -> list[int]:  # type: ignore[override]
        return [i for i, student in enumerate(self.trainees) if student.lost]

    def refuse_lost(self) -> None:
        """Raises a `ConfigError` if students ran out of memory."""
        if lost := ", ".join(str(self.architectures[i]) for i in self.lost):
            raise ConfigError(f"architectures={lost}: no memory for it beside the others; must be alone")

    # -- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[LOST] = [student.lost for student in self.trainees]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        # Nothing is frozen yet: DDP registers the parameters that require gradients when the fit begins, not later.
        for student, lost in zip(self.trainees, checkpoint[LOST], strict=True):
            student.stage, _ = self.objective.stage_at(checkpoint["epoch"])
            student.lost = lost
