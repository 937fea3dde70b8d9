"""The teacher, and its features for a batch, behind one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import BatchEncoding, PreTrainedConfig, PreTrainedModel

from kdnas.base.files import fingerprint
from kdnas.base.shared import shared
from kdnas.models.features import Feature, Features, Kind
from kdnas.models.forward import outputs
from kdnas.models.heads import Head

CACHE_DTYPE = torch.bfloat16
"""The dtype of cached features but logits: what a forward pass in bf16 gives, at half the size of fp32."""


@dataclass(frozen=True)
class Teacher:
    """A description of the teacher, which is loaded only when it has to run.

    Args:
        head: the kind of model that it is loaded as.
        precision: the precision of its forward passes, as Lightning names it.
        context: makes the context manager of a forward pass in that precision.
        order: for each of the data's classes, the index of its logit in the teacher's; None where they are equal.
    """

    path: str
    head: Head
    config: PreTrainedConfig
    precision: str
    context: Callable[[], AbstractContextManager[None]]
    order: tuple[int, ...] | None = None

    @property
    def identity(self) -> str:
        """A key that changes with the weights, the config, the precision or the order of classes."""
        weights = fingerprint(Path(self.path)) or f"{self.path} {getattr(self.config, '_commit_hash', None)}"
        order = "" if self.order is None else f" {self.order}"
        head = f"{type(self.head).__name__} {vars(self.head)}"
        return f"{weights} {self.config.to_json_string()} {head} {self.precision}{order}"

    def load(self) -> PreTrainedModel:
        """Loads the model, frozen; all candidates of a process share it."""

        def make() -> PreTrainedModel:
            model = self.head.load(self.path).eval().requires_grad_(False)
            words = model.get_input_embeddings().weight
            for part in model.modules():
                if self.precision == "bf16-mixed" and isinstance(part, nn.Linear) and part.weight is not words:
                    part.to(torch.bfloat16)  # once, where autocast would cast in every pass
            return model

        return shared("teacher", self.identity, make)


class Corpus(Protocol):
    """All rows that a run needs teacher outputs for."""

    rows: int
    tokens: int

    @property
    def digest(self) -> str:
        """A digest of the rows and their order."""
        ...

    def batches(self) -> Iterator[BatchEncoding]:
        """Yields every row once, in batches with the indices `rows` and `tokens`."""
        ...


class TeacherOutputs(ABC):
    """Gives the teacher's outputs for a batch, whether computed or cached."""

    @abstractmethod
    def check(self, masked: bool) -> None:
        """Refuses rows that it cannot give outputs for; `masked` says whether masks change them in every epoch."""

    @abstractmethod
    def open(
        self, teacher: Teacher, corpus: Corpus | None, features: Collection[Feature], device: torch.device
    ) -> TeacherOutputs:
        """Prepares all features that will be needed, for a corpus (None where masks change the rows in every epoch).

        Returns the object to call from now on: this one, or another form if it does not fit.
        """

    @abstractmethod
    def __call__(self, batch: BatchEncoding, features: Collection[Feature]) -> Features:
        """Returns the given features of a batch on the device."""


class OnlineTeacher(TeacherOutputs):
    """Runs the teacher on every batch. A plain object, not a module: it is never saved with the students."""

    def __init__(self) -> None:
        self.model: PreTrainedModel
        self.teacher: Teacher

    def check(self, masked: bool) -> None:
        """Accepts any rows."""

    def open(
        self, teacher: Teacher, corpus: Corpus | None, features: Collection[Feature], device: torch.device
    ) -> OnlineTeacher:
        self.teacher = teacher
        self.model = teacher.load().to(device)  # type: ignore[arg-type]
        return self

    @torch.no_grad()
    def __call__(self, batch: BatchEncoding, features: Collection[Feature]) -> Features:
        with self.teacher.context():
            values = outputs(self.model, batch, features)
        return {feature: self._adapted(feature, value) for feature, value in values.items()}

    def _adapted(self, feature: Feature, values: Tensor) -> Tensor:
        if feature.kind is Kind.LOGITS:
            return values if self.teacher.order is None else values[:, list(self.teacher.order)]
        return values.to(CACHE_DTYPE) if self.teacher.precision == "bf16-mixed" else values
