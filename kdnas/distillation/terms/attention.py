"""Attention maps: which tokens of a row a token attends to."""

from collections.abc import Iterator, Sequence

from torch import Tensor
from transformers import BatchEncoding, PreTrainedConfig

from kdnas.base.errors import ConfigError, chosen
from kdnas.distillation.losses import maps
from kdnas.distillation.mapping import MAPPINGS, pairs_of
from kdnas.distillation.terms.base import LossTerm, Mean, count_of
from kdnas.models.families import family_of
from kdnas.models.features import Feature, Features, Kind, Per
from kdnas.models.packing import Layout

MAPS = {"scores": maps.near_scores, "probabilities": maps.near_probabilities}


class AttentionMaps(LossTerm):
    """The attention maps of all mapped layers: TinyBERT (Jiao et al., 2020, Eq. 7), as the mean over pairs of layers.

    L = 1/|P| sum over (i, j) in P of MSE(A_i^S, A_j^T), with A = Q K^T / sqrt(d) or its softmax for each attention
    head; the mean over tokens, over the tokens of their rows, and over heads. Where the numbers of heads differ, the
    maps of both models are averaged over heads first. Maps are made from queries and keys: the models themselves keep
    PyTorch's fused attention, which has no maps. In a layer with a window, a map is 0 outside of it.

    Args:
        mapping: the name of a mapping in `kdnas.distillation.mapping`.
        of: `scores` (as TinyBERT), or `probabilities`, after the softmax.
    """

    def __init__(self, mapping: str = "skip", of: str = "scores") -> None:
        super().__init__()
        self.mapping, self.map = chosen("mapping", mapping, MAPPINGS), chosen("of", of, MAPS)

    def build(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
        pairs = pairs_of(self.mapping, student.num_hidden_layers, teacher.num_hidden_layers)
        own, targets = zip(*pairs, strict=True)
        self.own, self.targets = _Side(student, own), _Side(teacher, targets)
        self.student, self.teacher = self.own.features, self.targets.features

    def forward(self, student: Features, teacher: Features, batch: BatchEncoding) -> Mean:
        own, targets = self.own.vectors(student), self.targets.vectors(teacher)
        loss = maps.mean_over_tokens(self.of_rows, own, targets, Layout.of(batch).runs, len(self.own.inputs))
        return Mean(loss, count_of(batch, Per.TOKEN))

    def of_rows(self, own: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Returns the loss of rows, the sum over their tokens (see `maps.RowsLoss`)."""
        losses = []
        for one, other in zip(self.own.maps(own, self.map), self.targets.maps(targets, self.map), strict=True):
            if one.shape[1] != other.shape[1]:
                one, other = one.mean(1, keepdim=True), other.mean(1, keepdim=True)
            losses.append(maps.mse(one, other))
        return sum(losses[1:], losses[0]) / len(losses)


class _Side:
    """The student's or the teacher's side of the mapped layers.

    Raises:
        ConfigError: the family's attention maps are not made of queries and keys alone.
    """

    def __init__(self, config: PreTrainedConfig, layers: Sequence[int]) -> None:
        family = family_of(config)
        if not family.plain_attention:
            raise ConfigError(
                f"objective: attention maps of a {config.model_type} are not of queries and keys alone; "
                "must have none, or relations (kdnas.distillation.terms.Relations)"
            )
        self.size, self.windows = family.head_size(config), [family.window(config, layer) for layer in layers]
        self.inputs = [(Feature(Kind.QUERY, layer), Feature(Kind.KEY, layer)) for layer in layers]
        self.features = frozenset(feature for both in self.inputs for feature in both)

    def vectors(self, features: Features) -> list[Tensor]:
        """Returns the queries and keys of each layer in turn, (tokens, heads, size) each."""
        return [features[feature].unflatten(-1, (-1, self.size)) for both in self.inputs for feature in both]

    def maps(self, vectors: Sequence[Tensor], of: maps.Map) -> Iterator[Tensor]:
        """Yields each layer's maps, (rows, heads, length, length), from its queries and keys in turn."""
        for queries, keys, window in zip(vectors[::2], vectors[1::2], self.windows, strict=True):
            shared = queries.shape[1] // keys.shape[1]  # several heads may have the same keys
            yield of(maps.scores(queries, keys.repeat_interleave(shared, dim=1)), window)
