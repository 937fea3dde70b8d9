"""Attention maps: which tokens of a row a token attends to."""

from collections.abc import Sequence

from torch import Tensor
from transformers import BatchEncoding, PreTrainedConfig

from kdnas.base.errors import chosen
from kdnas.distillation.losses import maps
from kdnas.distillation.mapping import MAPPINGS, pairs_of
from kdnas.distillation.terms.base import LossTerm, Mean, count_of
from kdnas.models.features import Feature, Features, Kind, Per
from kdnas.models.packing import Layout

MAPS = {"scores": lambda scores: scores, "probabilities": lambda scores: scores.softmax(-1)}


class AttentionMaps(LossTerm):
    """The attention maps of all mapped layers: TinyBERT (Jiao et al., 2020, Eq. 7), as the mean over pairs of layers.

    L = 1/|P| sum over (i, j) in P of MSE(A_i^S, A_j^T), with A = Q K^T / sqrt(d) or its softmax for each attention
    head; the mean over tokens, over the tokens that they attend to, and over heads. Where the numbers of heads differ,
    the maps of both models are averaged over heads first. Maps are made from queries and keys: the models themselves
    keep PyTorch's fused attention, which has no maps.

    Args:
        mapping: the name of a mapping in `kdnas.distillation.mapping`.
        of: `scores` (as TinyBERT), or `probabilities`, after the softmax.
    """

    def __init__(self, mapping: str = "skip", of: str = "scores") -> None:
        super().__init__()
        self.mapping, self.map = chosen("mapping", mapping, MAPPINGS), chosen("of", of, MAPS)

    def build(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
        self.pairs = pairs_of(self.mapping, student.num_hidden_layers, teacher.num_hidden_layers)
        self.heads = student.num_attention_heads, teacher.num_attention_heads
        self.student = frozenset(feature for i, _ in self.pairs for feature in _of_layer(i))
        self.teacher = frozenset(feature for _, j in self.pairs for feature in _of_layer(j))

    def forward(self, student: Features, teacher: Features, batch: BatchEncoding) -> Mean:
        own, targets = (
            [values[feature].unflatten(-1, (heads, -1)) for layer in layers for feature in _of_layer(layer)]
            for values, heads, layers in zip((student, teacher), self.heads, zip(*self.pairs, strict=True), strict=True)
        )
        loss = maps.mean_over_tokens(self.of_rows, own, targets, Layout.of(batch).runs)
        return Mean(loss, count_of(batch, Per.TOKEN))

    def of_rows(self, own: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Returns the loss of rows, the sum over their tokens.

        `own` and `targets` are the queries and keys of each pair's layers in turn (see `maps.RowsLoss`).
        """
        losses = []
        for queries, keys, *target in zip(own[::2], own[1::2], targets[::2], targets[1::2], strict=True):
            one, other = self.map(maps.scores(queries, keys)), self.map(maps.scores(*target))
            if one.shape[1] != other.shape[1]:
                one, other = one.mean(1, keepdim=True), other.mean(1, keepdim=True)
            losses.append(maps.mse(one, other))
        return sum(losses[1:], losses[0]) / len(losses)


def _of_layer(layer: int) -> tuple[Feature, Feature]:
    return Feature(Kind.QUERY, layer), Feature(Kind.KEY, layer)
