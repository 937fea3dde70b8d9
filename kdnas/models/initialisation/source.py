"""The interface of student sources, what they may use, and random weights."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import BatchEncoding, PreTrainedConfig, PreTrainedModel


class Text(Protocol):
    """The rows of a training, tokenized and without masks."""

    @property
    def digest(self) -> str:
        """A digest of the rows and their order."""
        ...

    def first(self, rows: int) -> Sequence[BatchEncoding]:
        """Returns batches of the first training rows."""
        ...


@dataclass(frozen=True)
class TeacherAndText:
    """What a source may use beside a student's own config. Nothing is loaded until it is asked for.

    Attributes:
        path: the teacher's folder or hub id.
        load: loads the teacher's encoder in fp32, in evaluation mode, without its pooler.
        text: the rows of the training; None where there are none.
    """

    path: str
    load: Callable[[], PreTrainedModel]
    text: Text | None = None


class StudentSource(ABC):
    """Gives a new student's encoder its first weights; `origin` says in the model card where they come from.

    Everything that a source does depends on the student, the teacher and the text alone: the students of a gang get
    what each would get by itself, and every process the same.
    """

    origin: str

    def check(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
        """Refuses, by a `ConfigError`, students that cannot begin so; before any work."""

    @abstractmethod
    def __call__(self, encoder: PreTrainedModel, known: TeacherAndText) -> None:
        """Changes the weights of an encoder in place. They are random and depend on the seed alone."""


@dataclass(frozen=True)
class RandomWeights(StudentSource):
    """Keeps the random weights."""

    origin = "random"

    def __call__(self, encoder: PreTrainedModel, known: TeacherAndText | None = None) -> None:
        pass
