"""Terms of hidden states: pairs of a student and a teacher layer, each with a learned projection."""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import BatchEncoding, PreTrainedConfig

from kdnas.base.errors import chosen
from kdnas.distillation.losses import states
from kdnas.distillation.mapping import MAPPINGS, pairs_of
from kdnas.distillation.terms.base import NORMALIZATIONS, LossTerm, Mean, count_of
from kdnas.models.features import Feature, Features, Per, hidden_state
from kdnas.models.initialisation.fitting import LeastSquares

LOSSES = {"kl": states.kl, "mse": states.mse, "cosine": states.cosine}
TOKENS = {"first": Per.FIRST_TOKEN, "all": Per.TOKEN}


class StatePairs(LossTerm):
    """The mean over pairs of layers of a loss of the student's projected states and the teacher's.

    L = 1/|P| sum over (i, j) in P of loss(H_i^S W_i^j, H_j^T), over real tokens, with one bias-free projection
    W_i^j (d_S x d_T) for each pair P of student layer i and teacher layer j.

    Args:
        loss: `mse`, `kl` (softmax over the features) or `cosine`.
        tokens: `all` real ones, or `first`, those of [CLS].
        normalize: `variance` divides each pair's MSE by the variance of the teacher layer; `none` leaves it. The
            other losses have no unit, and are left as they are.
    """

    variance: Tensor

    def __init__(self, loss: str = "mse", tokens: str = "all", normalize: str = "none") -> None:
        super().__init__()
        self.loss, self.per = chosen("loss", loss, LOSSES), chosen("tokens", tokens, TOKENS)
        self.normalize = chosen("normalize", normalize, NORMALIZATIONS) and self.loss is states.mse

    @abstractmethod
    def layers(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> list[tuple[int, int]]:
        """Returns the pairs of a student and a teacher layer; 0 is the embeddings' output."""

    def build(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
        self.pairs = self.layers(student, teacher)
        self.student = frozenset(hidden_state(i, self.per) for i, _ in self.pairs)
        self.teacher = frozenset(hidden_state(j, self.per) for _, j in self.pairs)
        self.normalized_by = self.teacher if self.normalize else frozenset()
        self.projections = nn.ModuleList(
            nn.Linear(student.hidden_size, teacher.hidden_size, bias=False) for _ in self.pairs
        )
        self.register_buffer("variance", torch.ones(len(self.pairs)))

    def fit(self, student: Features, teacher: Features) -> None:
        for (i, j), projection in zip(self.pairs, self.projections, strict=True):
            squares = LeastSquares(student[hidden_state(i, self.per)], centred=False)
            weight = projection.get_parameter("weight")
            weight.zero_()  # [CLS] has fewer rows than features: random weights would remain where they say nothing
            squares.fit(weight, None, teacher[hidden_state(j, self.per)])

    def calibrate(self, variances: Mapping[Feature, float], reference: float) -> None:
        self.variance.copy_(torch.tensor([variances[hidden_state(j, self.per)] for _, j in self.pairs]))

    def forward(self, student: Features, teacher: Features, batch: BatchEncoding) -> Mean:
        losses = [
            self.loss(projection(student[hidden_state(i, self.per)]), teacher[hidden_state(j, self.per)]) / variance
            for (i, j), projection, variance in zip(self.pairs, self.projections, self.variance, strict=True)
        ]
        return Mean(torch.stack(losses).mean(), count_of(batch, self.per))


class HiddenStates(StatePairs):
    """Hidden-state transfer (KD-NAS v2, Eq. 1): the states of all mapped layers.

    The mean over pairs, not Eq. 1's sum: a sum would punish depth.

    Args:
        mapping: the name of a mapping in `kdnas.distillation.mapping`.
        loss, tokens, normalize: see `StatePairs`.
    """

    def __init__(
        self, mapping: str = "uniform_last", loss: str = "mse", tokens: str = "all", normalize: str = "none"
    ) -> None:
        super().__init__(loss, tokens, normalize)
        self.mapping = chosen("mapping", mapping, MAPPINGS)

    def layers(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> list[tuple[int, int]]:
        return pairs_of(self.mapping, student.num_hidden_layers, teacher.num_hidden_layers)


class LastHiddenState(StatePairs):
    """The last layers' states: KD-NAS v1, Eq. 1 (`kl`), and what the public code of XtremeDistil trains (`mse`)."""

    def __init__(self, loss: str = "mse", tokens: str = "first", normalize: str = "none") -> None:
        super().__init__(loss, tokens, normalize)

    def layers(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> list[tuple[int, int]]:
        return [(student.num_hidden_layers, teacher.num_hidden_layers)]


class Embeddings(StatePairs):
    """The output of the embeddings, which the first layer takes: TinyBERT (Jiao et al., 2020, Eq. 9)."""

    def layers(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> list[tuple[int, int]]:
        return [(0, 0)]
