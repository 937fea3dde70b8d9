"""Attention relations: how much the queries, keys or values of a row's tokens resemble each other."""

import math
from collections.abc import Mapping, Sequence
from itertools import product

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedConfig

from kdnas.base.errors import ConfigError, chosen, is_whole, require
from kdnas.distillation.losses import maps
from kdnas.distillation.terms.base import NORMALIZATIONS, LossTerm, Mean, count_of
from kdnas.distillation.weights import check_weights
from kdnas.models.attention import check_features
from kdnas.models.features import Feature, Features, Kind, Per
from kdnas.models.initialisation import MatchedRelations
from kdnas.models.packing import Layout

KINDS = {"q": Kind.QUERY, "k": Kind.KEY, "v": Kind.VALUE}
PAIRS = {f"{a}-{b}": (KINDS[a], KINDS[b]) for a, b in product(KINDS, repeat=2)}
LOSSES = {"kl": maps.kl, "mse": maps.probability_mse}
SELF: Mapping[str, float] = {"q-q": 1.0, "k-k": 1.0, "v-v": 1.0}
TEACHER = "teacher"
"""The setting of as many relation heads as the teacher has attention heads."""


class Relations(LossTerm):
    """The attention relations of one layer: MiniLMv2 (KD-NAS v2, Eq. 5-6) and AutoDistil (Eq. 6-8).

    L = sum over pairs ab of w_ab loss(A_a A_b^T / sqrt(d_r)) of student and teacher, the mean over tokens and relation
    heads. A_a are all heads' queries, keys or values side by side, split anew into relation heads of d_r values: the
    student's heads and hidden size need not be the teacher's. With `kl`, gradients are those of Eq. 6's cross entropy;
    the value is less by the teacher's entropy, so that 0 is the best.

    Args:
        pairs: the weights of the pairs by name: q-q, q-k and so on, of queries, keys and values.
        loss: `kl`, or `mse` of the probabilities (AutoDistil).
        layer: the teacher's layer, from 1; -1 is the last, -2 the second last.
        student_layer: the student's layer, likewise.
        heads: the number of relation heads; `teacher` for as many as the teacher's attention heads.
        normalize: `variance` divides L by the L of a student with uniform relations, over the held-out tokens: 1 - L is
            then to the relations what the explained variance is to hidden states. (With `mse` and one pair, the divisor
            is the variance of the teacher's probabilities over the tokens of a row.) `none` leaves L.
    """

    uniform: Tensor

    def __init__(
        self,
        pairs: Mapping[str, float] = SELF,
        loss: str = "kl",
        layer: int = -2,
        student_layer: int = -1,
        heads: int | str = 48,
        normalize: str = "none",
    ) -> None:
        super().__init__()
        check_weights("pairs", pairs, PAIRS, default=0)
        self.pairs = {name: weight for name, weight in pairs.items() if weight}
        self.kinds = sorted({kind for name in self.pairs for kind in PAIRS[name]})
        self.loss = chosen("loss", loss, LOSSES)
        for key, number in {"layer": layer, "student_layer": student_layer}.items():
            require(is_whole(number) and number != 0, key, number, "a whole number: from 1, or -1 for the last layer")
        self.layer, self.student_layer = layer, student_layer
        fits = heads == TEACHER or (is_whole(heads) and heads > 0)
        require(fits, "heads", heads, f"a whole number from 1, or {TEACHER}")
        self.heads = heads
        self.normalize = chosen("normalize", normalize, NORMALIZATIONS)

    def build(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
        own = _index("student_layer", self.student_layer, student.num_hidden_layers)
        target = _index("layer", self.layer, teacher.num_hidden_layers)
        self.own, self.targets = ([Feature(kind, layer) for kind in self.kinds] for layer in (own, target))
        self.student, self.teacher = frozenset(self.own), frozenset(self.targets)
        self.normalized_by = self.teacher if self.normalize else frozenset()
        self.register_buffer("uniform", torch.ones(()))
        check_features(student, self.student)
        check_features(teacher, self.teacher)
        self.count = int(teacher.num_attention_heads if self.heads == TEACHER else self.heads)
        self._check_widths(student, teacher)
        self.relations = MatchedRelations(own, target, self.count)

    def _check_widths(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
        """Refuses a number of heads that does not divide the widths, and pairs whose two kinds have other widths."""
        widths = [[feature.width(config) for feature in self.own] for config in (student, teacher)]
        common = math.gcd(*widths[0], *widths[1])
        fitting = ", ".join(str(count) for count in range(1, common + 1) if common % count == 0)
        own_width, width = (min(each) for each in widths)
        both = f"the student's {own_width} values and the teacher's {width}"
        require(common % self.count == 0, "heads", self.heads, f"one of {fitting}, which divide {both}")
        for name in self.pairs:
            for each in widths:
                one, other = (each[self.kinds.index(kind)] for kind in PAIRS[name])
                if one != other:
                    raise ConfigError.of(f"pairs.{name}", f": of {one} and {other} values a token; must be as many")

    def forward(self, student: Features, teacher: Features, batch: BatchEncoding) -> Mean:
        loss = self._loss(self._split(student, self.own), self._split(teacher, self.targets), batch)
        return Mean(loss / self.uniform, count_of(batch, Per.TOKEN))

    def reference(self, teacher: Features, batch: BatchEncoding) -> Mean:
        targets = self._split(teacher, self.targets)
        uniform = [torch.zeros_like(vectors) for vectors in targets]  # the softmax of equal scores
        return Mean(self._loss(uniform, targets, batch), count_of(batch, Per.TOKEN))

    def calibrate(self, variances: Mapping[Feature, float], reference: float) -> None:
        self.uniform.fill_(reference)

    def _split(self, values: Features, features: Sequence[Feature]) -> list[Tensor]:
        """Returns the vectors of each feature, split into relation heads: (tokens, heads, size) each."""
        return [values[feature].unflatten(-1, (self.count, -1)) for feature in features]

    def _loss(self, own: Sequence[Tensor], targets: Sequence[Tensor], batch: BatchEncoding) -> Tensor:
        return maps.mean_over_tokens(self.of_rows, own, targets, Layout.of(batch).runs)

    def of_rows(self, own: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Returns the loss of rows, the sum over their tokens, from the vectors of each kind (see `maps.RowsLoss`)."""
        losses = []
        for name, weight in self.pairs.items():
            a, b = (self.kinds.index(kind) for kind in PAIRS[name])
            losses.append(weight * self.loss(maps.scores(own[a], own[b]), maps.scores(targets[a], targets[b])))
        return sum(losses[1:], losses[0])


def _index(key: str, layer: int, layers: int) -> int:
    """Returns the index, from 1, of a layer that may be counted from the last (-1) down."""
    require(abs(layer) <= layers, key, layer, f"from 1 to {layers}, or from -{layers} to -1")
    return layer if layer > 0 else layers + 1 + layer
