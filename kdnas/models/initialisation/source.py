"""The interface of student sources, what they may use, and random weights."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import BatchEncoding, PreTrainedConfig, PreTrainedModel

from kdnas.base.shared import shared
from kdnas.models.initialisation.sample import Taught

KNOWN = "known of the teacher"
"""The kind of what a process computes once for the first weights of all students (`kdnas.base.shared`)."""
TOKENS = 8192
"""The most tokens of the sample that weights are fitted on, several times a usual hidden size."""


class Text(Protocol):
    """The rows of a training, tokenized and without masks."""

    @property
    def digest(self) -> str:
        """A digest of the rows and their order."""
        ...

    def first(self, tokens: int) -> Sequence[BatchEncoding]:
        """Returns batches of the first training rows, of at most so many tokens altogether, but one row at least."""
        ...


@dataclass(frozen=True)
class MatchedRelations:
    """The attention relations that a student is to match: of which of its layers, of which of the teacher's (both from
    1), and in how many relation heads.
    """

    student: int
    teacher: int
    heads: int


@dataclass(frozen=True)
class TeacherAndText:
    """A teacher and a text, from which a student's first weights may be made. Nothing is loaded until it is asked for.

    Attributes:
        identity: a key that changes with the teacher's weights.
        load: loads the teacher's encoder in fp32, in evaluation mode, without its pooler.
        text: the rows of the training; None for sources that need none.
        relations: the attention relations that the student is to match, where the objective has nothing else.
    """

    identity: str
    load: Callable[[], PreTrainedModel]
    text: Text | None
    relations: MatchedRelations | None = None

    def taught(self) -> Taught:
        """Returns what the teacher gives on a sample of the text; computed once for all students of a process.

        Raises:
            AttributeError: the teacher's layers are not as BERT's (`layers_of`).
        """
        assert self.text is not None
        text = self.text
        return shared(KNOWN, (Taught, self.identity, text.digest), lambda: Taught.of(self.load(), text.first(TOKENS)))


class StudentSource(ABC):
    """Gives a new student's encoder its first weights; `origin` says in the model card where they come from.

    All that a source does depends on the student's config and seed, the teacher and the text: the students of a gang
    get what each would get by itself, and all processes the same.

    Attributes:
        needs_text: whether the weights are made from the teacher and the text of a training. Others are there as soon
            as the student is.
        fits_terms: whether the loss terms fit their projections to the student's states, before training.
    """

    origin: str
    needs_text = True
    fits_terms = False

    def check(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:  # noqa: B027 - optional
        """Refuses, by a `ConfigError`, a student that cannot begin so; before any work."""

    @abstractmethod
    def __call__(self, encoder: PreTrainedModel, known: TeacherAndText) -> None:
        """Changes the weights of an encoder in place. They are random, by the seed, until then."""


@dataclass(frozen=True)
class RandomWeights(StudentSource):
    """Keeps the random weights."""

    origin = "random"
    needs_text = False

    def __call__(self, encoder: PreTrainedModel, known: TeacherAndText | None = None) -> None:
        pass
