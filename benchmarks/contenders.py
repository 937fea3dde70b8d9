"""The loops that race. Each trains the same students on the same rows, and reports every batch to a clock.

All have the same teacher, initial weights, AdamW (the fused one), learning rates, clipping and batch size, no dropout
and clean text. Only what each library does with them differs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from datasets import Dataset, load_dataset
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, PreTrainedModel

from benchmarks.ceiling import synchronise
from kdnas import distil
from kdnas.base.config import override
from kdnas.distillation.mapping import last, map_layers, uniform, uniform_last
from kdnas.models.architecture import Architecture
from kdnas.models.heads import Encoder
from kdnas.models.loading import load_encoder, load_tokenizer
from kdnas.models.resizing import student_config
from kdnas.training.optimization import adamw, linear

STUDENT = Architecture(4, 12, 288, 768, "gelu")
BATCH, MAX_LENGTH, SEED = 32, 128, 0
LEARNING_RATE, WARMUP, BETAS, WEIGHT_DECAY, CLIP = 8e-4, 0.05, (0.9, 0.98), 0.01, 1.0
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}
OUTPUTS = ("online", "memory", "disk")
"""The places that kdnas takes the teacher's outputs from: values of `outputs=`."""


# -- what the loops share


@dataclass(frozen=True)
class Course:
    """What is to be trained: `epochs` times over the rows of `steps` batches.

    Args:
        teacher: folder or hub id.
        data: a folder laid out like GLUE, or a hub id.
        held_out: rows of the final loss.
        work: a folder for what the contenders leave behind.
    """

    teacher: str
    data: str
    steps: int
    epochs: int
    held_out: int
    device: torch.device
    work: Path

    @property
    def rows(self) -> int:
        return self.steps * BATCH

    def encoded(self, split: str, rows: int) -> Dataset:
        """Tokenized premises and hypotheses, drawn at random, as kdnas draws them."""
        tokenizer = load_tokenizer(self.teacher)
        found = load_dataset(self.data, "mnli")[split].filter(
            lambda labels: [label >= 0 for label in labels], input_columns="label", batched=True
        )
        chosen = found.shuffle(seed=SEED).select(range(min(rows, len(found))))

        def tokenize(batch: dict[str, Any]) -> Any:
            texts = (list(batch[name]) for name in ("premise", "hypothesis"))
            return tokenizer(*texts, truncation=True, max_length=MAX_LENGTH)

        return chosen.map(tokenize, batched=True, remove_columns=chosen.column_names)

    def training_rows(self) -> Dataset:
        return self.encoded("train", self.rows)

    def loader(self, rows: Dataset, padding: str = "longest", shuffle: bool = True) -> DataLoader[Any]:
        """Batches as plain dicts, padded to their own longest row, or to `max_length`."""
        collate = DataCollatorWithPadding(load_tokenizer(self.teacher), padding, MAX_LENGTH)
        generator = torch.Generator().manual_seed(SEED)
        return DataLoader(rows, BATCH, shuffle, collate_fn=lambda some: dict(collate(some)), generator=generator)

    def models(self) -> tuple[PreTrainedModel, PreTrainedModel]:
        """The teacher, and a student with the initial weights that kdnas would give it."""
        teacher: Any = load_encoder(self.teacher)
        student: Any = Encoder().new(student_config(teacher.config, STUDENT), SEED, dropout=0.0)
        return teacher.requires_grad_(False).to(self.device), student.to(self.device)

    def pairs(self, teacher_layers: int) -> list[tuple[int, int]]:
        """Student and teacher layers that the objective pairs, from 1."""
        layers = map_layers(uniform_last, STUDENT.num_hidden_layers, teacher_layers)
        return [(i, j) for i, targets in enumerate(layers, start=1) for j in targets]

    def schedule(self, step: int) -> float:
        """The learning rate's share of its peak."""
        return linear(step / (self.steps * self.epochs), WARMUP)


class Clock:
    """Times the last epoch's steps, each from its batch to the next one's: loading is in, validation is not.

    Args:
        device: waited for when the time is read.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.started = time.perf_counter()
        self.epochs: list[Epoch] = []

    def epoch(self, steps: int) -> None:
        """Begins an epoch of so many steps."""
        self.epochs.append(Epoch(steps))

    def batch(self, batch: Mapping[str, Tensor]) -> None:
        """Begins a step."""
        epoch = self.epochs[-1]
        if len(epoch.tokens) in (0, epoch.steps - 1):
            synchronise(self.device)
            epoch.marks.append(time.perf_counter())
        epoch.tokens.append(real_tokens(batch))

    def measured(self) -> dict[str, float]:
        """Returns the last epoch's `tokens` (real ones, of one student) and `seconds`, and `ready`.

        `ready` is the seconds by which the first epoch, with set-up, warm-up and filling a cache, took longer.
        """
        first, final = self.epochs[0], self.epochs[-1]
        tokens = sum(int(count) for count in final.tokens[:-1])
        seconds = final.marks[-1] - final.marks[0]
        return {"tokens": tokens, "seconds": seconds, "ready": first.marks[-1] - self.started - seconds}


@dataclass
class Epoch:
    """Its steps' real tokens, and the times of its first and last batch."""

    steps: int
    tokens: list[Tensor | int] = field(default_factory=list)
    marks: list[float] = field(default_factory=list)


def real_tokens(batch: Mapping[str, Tensor]) -> Tensor | int:
    """Returns the number of tokens without padding (packed batches have none), as a tensor: no wait for a device."""
    return batch["attention_mask"].sum() if "attention_mask" in batch else batch["input_ids"].numel()


class Timed:
    """A loader that reports its epochs and batches to a clock."""

    def __init__(self, loader: DataLoader[Any], clock: Clock) -> None:
        self.loader, self.clock = loader, clock

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.clock.epoch(len(self))
        for batch in self.loader:
            self.clock.batch(batch)
            yield batch


@dataclass(frozen=True)
class Trained:
    """A student after its training.

    Attributes:
        project: states of a student layer (tokens, d_S) as it would have those of a teacher layer, (tokens, d_T).
    """

    model: PreTrainedModel
    project: Callable[[int, int, Tensor], Tensor]


@torch.no_grad()
def held_out_loss(course: Course, students: list[Trained]) -> list[float]:
    """Returns each student's loss: the MSE of its projected states, mean over pairs and real held-out tokens, fp32."""
    teacher, _ = course.models()
    pairs, rows = course.pairs(teacher.config.num_hidden_layers), course.encoded("validation_matched", course.held_out)
    errors, count = torch.zeros(len(students), dtype=torch.double), 0
    for student in students:
        model: Any = student.model.eval()
        model.to(course.device)  # Lightning leaves it on the CPU
    for batch in course.loader(rows, shuffle=False):
        batch = {name: values.to(course.device) for name, values in batch.items()}
        real = batch["attention_mask"].bool()
        expected = teacher(**batch, output_hidden_states=True).hidden_states
        for index, student in enumerate(students):
            own = student.model(**batch, output_hidden_states=True).hidden_states
            for i, j in pairs:
                difference = student.project(i, j, own[i][real]) - expected[j][real]
                errors[index] += difference.double().square().mean(1).sum().cpu()
        count += int(real.sum())
    return (errors / (count * len(pairs))).tolist()


# -- the loops


def plain(course: Course, clock: Clock, padding: str) -> list[Trained]:
    """A loop as in the public re-implementation (auto-kd-nas): the teacher online, its outputs and the student's with
    padding and all, one projection of all student layers to the two teacher layers of each, side by side.

    Of its models' masked-language heads, which nothing trains, the forward pass is left out: in its favour.
    """
    teacher, student = course.models()
    depth, width = student.config.num_hidden_layers, teacher.config.hidden_size
    low, high = (
        [targets[0] for targets in strategy(depth, teacher.config.num_hidden_layers)] for strategy in (uniform, last)
    )
    torch.manual_seed(SEED)
    projection = nn.Linear(student.config.hidden_size, 2 * width).to(course.device)
    trained = nn.ModuleList([student, projection])
    optimizer = adamw_of(trained)
    scheduler = LambdaLR(optimizer, course.schedule)
    loader = Timed(course.loader(course.training_rows(), padding), clock)
    student.train()
    for _ in range(course.epochs):
        for batch in loader:
            batch = {name: values.to(course.device) for name, values in batch.items()}
            with torch.no_grad():
                expected = teacher(**batch, output_hidden_states=True).hidden_states
            own = student(**batch, output_hidden_states=True).hidden_states[1:]
            both = [torch.cat([expected[a], expected[b]], dim=-1) for a, b in zip(low, high, strict=True)]
            loss = functional.mse_loss(projection(torch.stack(own)), torch.stack(both))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained.parameters(), CLIP)
            optimizer.step()
            scheduler.step()
            loss.item()  # as it sums up every step's

    def project(i: int, j: int, states: Tensor) -> Tensor:
        half = 0 if j == low[i - 1] else width
        return projection(states)[:, half : half + width]

    return [Trained(student, project)]


def textbrewer(course: Course, clock: Clock) -> list[Trained]:
    """TextBrewer's GeneralDistiller as its documentation has it: an `intermediate_matches` entry with a linear `proj`
    for each pair, an adaptor that gives the hidden states and `inputs_mask`, batches as dicts, a scheduler class.

    The weights make the sum of its losses kdnas's mean, and nothing is logged or saved but what it always saves.
    """
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig  # of the extra `benchmarks`

    teacher, student = course.models()
    widths = (student.config.hidden_size, teacher.config.hidden_size)
    pairs = course.pairs(teacher.config.num_hidden_layers)
    match = {"feature": "hidden", "loss": "hidden_mse", "weight": 1 / len(pairs)}
    matches = [{"layer_S": i, "layer_T": j, "proj": ["linear", *widths], **match} for i, j in pairs]

    def adaptor(batch: dict[str, Tensor], outputs: Any) -> dict[str, Any]:
        return {"hidden": outputs.hidden_states, "inputs_mask": batch["attention_mask"]}

    torch.manual_seed(SEED)
    loader: Any = Timed(course.loader(course.training_rows()), clock)
    with TemporaryDirectory(dir=course.work) as folder:
        settings = TrainingConfig(device=course.device, output_dir=folder, log_dir=None)
        objective = DistillationConfig(intermediate_matches=matches)
        distiller = GeneralDistiller(settings, objective, teacher, student, adaptor, adaptor)
        with distiller:
            distiller.train(
                adamw_of(student),
                loader,
                num_epochs=course.epochs,
                scheduler_class=LambdaLR,
                scheduler_args={"lr_lambda": course.schedule},
                max_grad_norm=CLIP,
                output_hidden_states=True,
            )
    projections = dict(zip(pairs, distiller.projs, strict=True))
    return [Trained(student, lambda i, j, states: projections[i, j](states))]


HIDDEN_STATES = ("data=glue", "task=mnli", "objective=hidden_states")


def kdnas(
    course: Course,
    clock: Clock,
    outputs: str,
    students: int,
    precision: str,
    student: Architecture = STUDENT,
    work: Sequence[str] = HIDDEN_STATES,
    more: Sequence[str] = (),
) -> list[Trained]:
    """kdnas itself, as a user runs it.

    Args:
        work: the data, the task and the objective, as overrides.
        more: overrides after the course's own.
    """
    Ticks.clock = clock
    with TemporaryDirectory(dir=course.work) as folder:
        distil(*overrides(course, outputs, students, precision, folder, student), *work, *more)
    return [distilled(student) for student in Ticks.module.trainees]


def overrides(
    course: Course, outputs: str, students: int, precision: str, folder: str, student: Architecture
) -> list[str]:
    """Returns the course as kdnas's settings, with a callback for the clock."""
    values = ",".join(f"{name}:{value}" for name, value in student.to_dict().items())
    settings = {
        "teacher.path": course.teacher,
        "data.path": course.data,
        "data.rows": course.rows,
        "data.held_out": course.held_out,
        "data.batch_size": BATCH,
        "data.max_length": MAX_LENGTH,
        "data.proxy": 1.0,
        "module.learning_rate": LEARNING_RATE,
        "module.warmup": WARMUP,
        "module.betas": list(BETAS),
        "module.weight_decay": WEIGHT_DECAY,
        "module.dropout": 0.0,
        "trainer.max_epochs": course.epochs,
        "trainer.accelerator": course.device.type,
        "trainer.precision": precision,
        "trainer.gradient_clip_val": CLIP,
        "++trainer.enable_progress_bar": False,
        "++trainer.callbacks": [{"_target_": "benchmarks.contenders.Ticks"}],
        "paths.runs": folder,
        "paths.output": folder,
        "paths.export": None,
        "seed": SEED,
    }
    groups = ["~latency", "~logger", f"outputs={outputs}"]
    chosen = [override(key, value) for key, value in settings.items()]
    return [*groups, *chosen, f"architectures=[{','.join([f'{{{values}}}'] * students)}]"]


def distilled(student: Any) -> Trained:
    """One of kdnas's students with its projections, if its objective has any."""
    term = student.terms.get("hidden_states")
    projections = dict(zip(term.pairs, term.projections, strict=True)) if term else {}
    return Trained(student.model, lambda i, j, states: projections[i, j](states))


class Ticks(L.Callback):
    """Reports Lightning's epochs and batches to a clock. Hydra makes it, so that it has no other way to the clock.

    Attributes:
        clock: the clock of the run that comes next.
        module: what the latest run has trained.
    """

    clock: Clock
    module: Any

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.clock.epoch(int(trainer.num_training_batches))

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self.clock.batch(batch)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        Ticks.module = module


def adamw_of(module: nn.Module) -> AdamW:
    return adamw(module, LEARNING_RATE, BETAS, WEIGHT_DECAY, PRECISIONS["fp32"])


# -- the names of the loops


@dataclass(frozen=True)
class Contender:
    """One of the loops with its settings, by name: `a`, `c`, `d`, `e-disk`, `f-online-4`, `f-memory-8-bf16`.

    Attributes:
        outputs, students, precision: kdnas's own settings; the other loops have one student, in fp32.
    """

    name: str
    loop: str
    outputs: str = "online"
    students: int = 1
    precision: str = PRECISIONS["fp32"]

    @classmethod
    def of(cls, name: str, precision: str) -> Contender:
        """Returns the contender of a name; a loop of kdnas has the given precision unless its name has one.

        Args:
            precision: `fp32` or `bf16`.

        Raises:
            ValueError: no contender has the name.
        """
        loop, *parts = name.split("-")
        values: dict[str, Any] = {}
        for part in parts:
            if part in PRECISIONS:
                precision = part
            elif part in OUTPUTS:
                values["outputs"] = part
            elif part.isdigit() and int(part) > 0:
                values["students"] = int(part)
            else:
                raise ValueError(f"{name}: {part} must be a number of students or of {OUTPUTS}, {tuple(PRECISIONS)}")
        if loop not in LOOPS or (loop in "abc" and parts):
            raise ValueError(f"{name}: must be a, b, c, or begin with d, e or f")
        return cls(name, loop, **values, precision=PRECISIONS["fp32" if loop in "abc" else precision])

    def run(self, course: Course, clock: Clock) -> list[Trained]:
        return LOOPS[self.loop](self, course, clock)


def _kdnas(contender: Contender, course: Course, clock: Clock) -> list[Trained]:
    return kdnas(course, clock, contender.outputs, contender.students, contender.precision)


LOOPS: dict[str, Callable[[Contender, Course, Clock], list[Trained]]] = {
    "a": lambda _, course, clock: plain(course, clock, "max_length"),
    "b": lambda _, course, clock: plain(course, clock, "longest"),
    "c": lambda _, course, clock: textbrewer(course, clock),
    "d": _kdnas,
    "e": _kdnas,
    "f": _kdnas,
}
