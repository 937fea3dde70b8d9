"""Students that begin with what their teacher knows: its embeddings, or its layers too."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from kdnas.base.errors import ConfigError
from kdnas.base.shared import shared
from kdnas.models.building import new_encoder
from kdnas.models.families import architecture_of, family_of
from kdnas.models.initialisation.cutting import Cut, leading
from kdnas.models.initialisation.embeddings import Embeddings
from kdnas.models.initialisation.fitting import LeastSquares, fit_norm
from kdnas.models.initialisation.layers import Steps, layers_of
from kdnas.models.initialisation.sample import Taught
from kdnas.models.initialisation.source import KNOWN, MatchedRelations, StudentSource, TeacherAndText

Mapping = Callable[[int, int], Sequence[tuple[int, ...]]]
"""A layer mapping: from the numbers of layers of student and teacher to each student layer's teacher layers."""


@dataclass(frozen=True)
class TeacherEmbeddings(StudentSource):
    """Takes the teacher's embeddings on the leading principal directions of its table of words; layers stay random.

    A student as wide as its teacher has them as they are.

    Raises:
        ConfigError: the student is wider than its teacher.
    """

    origin = "the teacher's embeddings"
    fits_terms = True

    def check(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
        check_width("embeddings", student, teacher)

    @torch.no_grad()
    def __call__(self, encoder: PreTrainedModel, known: TeacherAndText) -> None:
        def make() -> tuple[Embeddings, Tensor]:
            teacher = Embeddings.of(known.load())
            return teacher, teacher.directions()

        teacher, directions = shared(KNOWN, (Embeddings, known.identity), make)
        Embeddings.of(encoder).take(teacher, leading_basis(directions, encoder.config.hidden_size))


@dataclass(frozen=True)
class TeacherLayers(StudentSource):
    """Takes the teacher's embeddings and layers, cut down to the student's size (see `Cut`).

    The basis is the leading principal directions of the teacher's hidden states, all layers counted alike. What the
    teacher has less of, as heads or neurons, stays random.

    Args:
        mapping: the layer mapping. A student layer begins as the last teacher layer that it is mapped to, or as
            those that the last layers have, counted from the top, where it is mapped to none. Where a student is to
            match attention relations alone, the layer that has them begins as the teacher's, and the others around it.

    Raises:
        ConfigError: the student is wider or deeper than its teacher, or of a family whose layers are not as BERT's.
    """

    mapping: Mapping
    origin = "the teacher's layers"
    fits_terms = True

    def check(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
        check_width("teacher", student, teacher)
        own, most = (architecture_of(config).num_hidden_layers for config in (student, teacher))
        if own > most:
            raise ConfigError(
                f"student.init=teacher: a student of {own} layers has more than its teacher's {most}; must be random "
                f"or embeddings, or have at most {most} layers"
            )
        for config in (student, teacher):
            try:
                with torch.device("meta"):
                    layers_of(new_encoder(config))
            except AttributeError as error:
                raise ConfigError(
                    f"student.init=teacher: the layers of a {config.model_type} model are not as BERT's, which these "
                    "weights are made for; must be random or embeddings, as student.init=embeddings"
                ) from error

    @torch.no_grad()
    def __call__(self, encoder: PreTrainedModel, known: TeacherAndText) -> None:
        taught, training = known.taught(), encoder.training
        encoder.eval()  # without dropout
        basis = leading_basis(taught.directions, encoder.config.hidden_size)
        _fit_embeddings(encoder, taught, basis)
        heads = _heads(encoder, taught)
        layers = layers_of(encoder)
        steps = Steps(encoder, taught.sample, layers)
        cut = Cut(taught, basis, heads, family_of(encoder.config).head_size(encoder.config))
        matched = known.relations
        numbers = self.numbers(len(layers), len(taught.layers), matched)
        for i, (layer, number) in enumerate(zip(layers, numbers, strict=True), start=1):
            cut.fit(layer, number, steps, matched.heads if matched and i == matched.student else 0)
        encoder.train(training)

    def numbers(self, student: int, teacher: int, relations: MatchedRelations | None = None) -> list[int]:
        """Returns the teacher layer, from 1, that each student layer begins as."""
        if relations:
            below = relations.teacher - relations.student
            return [min(max(i + below, 1), teacher) for i in range(1, student + 1)]
        mapped = self.mapping(student, teacher)
        return [max(targets, default=teacher - student + i) for i, targets in enumerate(mapped, start=1)]


def check_width(name: str, student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
    """Refuses a student that is wider than its teacher."""
    own, most = architecture_of(student).hidden_size, architecture_of(teacher).hidden_size
    if own > most:
        raise ConfigError(
            f"student.init={name}: a student of hidden size {own} is wider than its teacher's {most}; must be random, "
            f"or hidden sizes at most {most}"
        )


def leading_basis(directions: Tensor, width: int) -> Tensor:
    """Returns the first `width` of the directions; all axes as they are for a student as wide as its teacher."""
    return torch.eye(width) if width == len(directions) else directions[:, :width]


def _fit_embeddings(encoder: PreTrainedModel, taught: Taught, basis: Tensor) -> None:
    own, theirs = Embeddings.of(encoder), Embeddings.of(taught.encoder)
    own.take(theirs, basis)
    top = own.projection or own.norm
    if top is None or (own.projection is None and own.copies(theirs)):
        return
    inputs = taught.sample.inputs(encoder, [top])[top]
    if own.projection is not None:
        LeastSquares(inputs).fit(own.projection.weight, own.projection.bias, taught.embedded @ basis)
    elif own.norm is not None:
        fit_norm(own.norm, inputs, taught.embedded @ basis)


def _heads(encoder: PreTrainedModel, taught: Taught) -> list[Tensor]:
    """Returns the heads to keep of each teacher layer: the same ones of all layers where these share a table of biases
    for distances, of which the student then takes the heads' columns.
    """
    count = min(encoder.config.num_attention_heads, len(taught.heads[0]))
    path = family_of(encoder.config).attention_bias
    if path is None:
        return [leading(importance, count) for importance in taught.heads]
    kept = leading(torch.stack(taught.heads).sum(0), count)
    own, theirs = (model.get_submodule(path).get_parameter("weight") for model in (encoder, taught.encoder))
    own[:, :count] = theirs[:, kept]
    return [kept] * len(taught.heads)
