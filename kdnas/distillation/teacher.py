"""What the students learn from: the teacher's outputs, behind one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import BatchEncoding, PreTrainedConfig, PreTrainedModel

from kdnas.files import fingerprint
from kdnas.models import Head
from kdnas.packing import Layout, Outputs, outputs
from kdnas.shared import shared

KEPT = torch.bfloat16
"""Of states: what a pass in bf16 gives, at half the space of fp32."""


@dataclass(frozen=True)
class Needs:
    """What objectives want to know of the teacher.

    Attributes:
        states: layers (from 1) whose states of all real tokens they want.
        first: layers of which the rows' first tokens will do.
        logits: whether they want the logits.
    """

    states: frozenset[int] = frozenset()
    first: frozenset[int] = frozenset()
    logits: bool = False

    def __or__(self, other: Needs) -> Needs:
        return Needs(self.states | other.states, self.first | other.first, self.logits or other.logits)

    def __bool__(self) -> bool:
        return bool(self.states or self.first or self.logits)

    @staticmethod
    def all(needs: Iterator[Needs]) -> Needs:
        return reduce(or_, needs, Needs())


@dataclass(frozen=True)
class Teacher:
    """A teacher that need not be loaded to be known.

    Args:
        path: a folder or hub id.
        head: what the students are; says how the teacher is loaded.
        config: its config.
        precision: of its passes, as Lightning names it.
        context: makes the context of a pass, with that precision.
        order: for each of the data's classes, the place of its logit in the model's; None where it is the same.
    """

    path: str
    head: Head
    config: PreTrainedConfig
    precision: str
    context: Callable[[], AbstractContextManager[None]]
    order: tuple[int, ...] | None = None

    @property
    def identity(self) -> str:
        """Names the very model, and how it is run."""
        weights = fingerprint(Path(self.path)) or f"{self.path} {getattr(self.config, '_commit_hash', None)}"
        order = "" if self.order is None else f" {self.order}"
        return f"{weights} {self.config.to_json_string()} {self.head} {self.precision}{order}"

    def load(self) -> PreTrainedModel:
        """The model, frozen; all candidates of a process have the same."""

        def make() -> PreTrainedModel:
            model = self.head.load(self.path).eval().requires_grad_(False)
            for part in model.modules():
                if self.precision == "bf16-mixed" and isinstance(part, nn.Linear):
                    part.to(torch.bfloat16)  # once, and not on every pass as autocast does
            return model

        return shared("teacher", self.identity, make)


class Corpus(Protocol):
    """All rows that a run asks the teacher about."""

    rows: int
    tokens: int

    @property
    def digest(self) -> str:
        """Names the very rows, in their order."""
        ...

    def batches(self) -> Iterator[BatchEncoding]:
        """Every row once; `rows` and `tokens` of a batch say which they are."""
        ...


class TeacherOutputs(ABC):
    """Gives the teacher's outputs for a batch; nothing above it knows whether they are computed or kept."""

    @abstractmethod
    def check(self, masked: bool) -> None:
        """Refuses rows that it cannot be asked about: `masked` ones are others with every pass.

        Raises:
            ConfigError: such rows.
        """

    @abstractmethod
    def open(self, teacher: Teacher, corpus: Corpus | None, needs: Needs, device: torch.device) -> TeacherOutputs:
        """What is to be asked from now on: this, or the next best form where this one does not fit.

        Args:
            corpus: the rows that will be asked about; None where each pass changes them.
            needs: all that will be asked for.
            device: of the batches.
        """

    @abstractmethod
    def __call__(self, batch: BatchEncoding, needs: Needs) -> Outputs:
        """The outputs for a batch on `device`."""


class OnlineTeacher(TeacherOutputs):
    """Runs the teacher on every batch. A plain object, not a module: it is never saved with the students."""

    def __init__(self) -> None:
        self.model: PreTrainedModel
        self.teacher: Teacher

    def check(self, masked: bool) -> None:
        """It can be asked about any."""

    def open(self, teacher: Teacher, corpus: Corpus | None, needs: Needs, device: torch.device) -> OnlineTeacher:
        self.teacher = teacher
        self.model = teacher.load().to(device)  # type: ignore[arg-type]
        return self

    @torch.no_grad()
    def __call__(self, batch: BatchEncoding, needs: Needs) -> Outputs:
        with self.teacher.context():
            given = outputs(self.model, batch, needs.states | needs.first)
        states = {layer: self._narrow(states) for layer, states in given.states.items()}
        first = {layer: states[layer].index_select(0, Layout.of(batch).first) for layer in needs.first}
        return Outputs({layer: states[layer] for layer in needs.states}, self._ordered(given.logits), first)

    def _ordered(self, logits: Tensor | None) -> Tensor | None:
        """The logits in the order of the data's classes."""
        return logits if logits is None or self.teacher.order is None else logits[:, list(self.teacher.order)]

    def _narrow(self, states: Tensor) -> Tensor:
        """As they would be kept, where that is all that a pass is good for: every student has less to read."""
        return states.to(KEPT) if self.teacher.precision == "bf16-mixed" else states
