"""What a student is asked to match. An objective belongs to one student and owns what it learns beside it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from kdnas.distillation.losses import hidden_state_mse
from kdnas.distillation.mapping import layer_mapping
from kdnas.distillation.teacher import HiddenStates
from kdnas.errors import ConfigError


class HiddenStateObjective(nn.Module):
    """Hidden-state transfer: KD-NAS v2, Eq. 1, as the mean over the mapped pairs.

    L = 1/|P| sum over (i, j) in P of MSE(H_i^S W_i^j, H_j^T), over real tokens, with one bias-free projection
    W_i^j (d_S x d_T) for each pair P of student layer i and teacher layer j. The mean, not Eq. 1's sum: a sum
    would punish depth.

    Args:
        student, teacher: their configs.
        mapping: the name of a strategy in `kdnas.distillation.mapping`.
        normalize: `variance` divides each pair's term by the variance of the teacher layer (see `calibrate`);
            `none` leaves it.
    """

    def __init__(
        self,
        student: PreTrainedConfig,
        teacher: PreTrainedConfig,
        mapping: str = "uniform_last",
        normalize: str = "none",
    ) -> None:
        super().__init__()
        check_normalize(normalize)
        layers = layer_mapping(mapping, student.num_hidden_layers, teacher.num_hidden_layers)
        self.pairs = [(i, j) for i, targets in enumerate(layers, start=1) for j in targets]
        self.normalize = normalize == "variance"
        self.projections = nn.ModuleList(
            nn.Linear(student.hidden_size, teacher.hidden_size, bias=False) for _ in self.pairs
        )
        self.variance: Tensor
        self.register_buffer("variance", torch.ones(len(self.pairs)))

    @property
    def teacher_layers(self) -> set[int]:
        """The teacher layers whose states `forward` needs."""
        return {j for _, j in self.pairs}

    def calibrate(self, variances: dict[int, float]) -> None:
        """Sets the teacher layers' variances, if this objective divides by them."""
        self.variance.copy_(torch.tensor([variances[j] for _, j in self.pairs]))

    def forward(self, student: HiddenStates, teacher: HiddenStates) -> Tensor:
        """The loss of one batch, a scalar.

        Args:
            student: layer to states of the real tokens, (tokens, d_S).
            teacher: the same of the teacher, (tokens, d_T).
        """
        terms = [
            hidden_state_mse(projection(student[i]), teacher[j], variance)
            for (i, j), projection, variance in zip(self.pairs, self.projections, self.variance, strict=True)
        ]
        return torch.stack(terms).mean()


def hidden_states(
    mapping: str = "uniform_last", normalize: str = "none"
) -> Callable[[PreTrainedConfig, PreTrainedConfig], HiddenStateObjective]:
    """Makes a `HiddenStateObjective` of these settings from a student's and a teacher's config.

    Raises:
        ConfigError: a name that does not exist, before there is a student or a teacher.
    """
    layer_mapping(mapping, student=1, teacher=1)
    check_normalize(normalize)
    return partial(HiddenStateObjective, mapping=mapping, normalize=normalize)


def check_normalize(name: str) -> None:
    if name not in ("none", "variance"):
        raise ConfigError(f"objective.normalize={name}: must be one of none, variance")
