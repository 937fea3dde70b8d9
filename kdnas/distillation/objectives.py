"""What a student is asked to match. An objective belongs to one student and owns what it learns beside it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import BatchEncoding, PreTrainedConfig

from kdnas.base.errors import ConfigError
from kdnas.distillation.losses import hidden_state_mse, logit_mse, representation_kl
from kdnas.distillation.mapping import layer_mapping
from kdnas.distillation.teacher import Needs
from kdnas.models.packing import Layout, Outputs
from kdnas.tasks import MaskedTokens as MaskedTokensTask

REPRESENTATION_LOSSES = {"kl": representation_kl, "mse": hidden_state_mse}
REPRESENTATION_TOKENS = ("first", "all")


class Objective(nn.Module, ABC):
    """One loss of one student.

    Attributes:
        student_layers: whose states `forward` needs.
        needs: what it needs of the teacher, which may be nothing.
        needs_labels: whether the rows must have labels.
        needs_masks: whether tokens must be masked.
        normalize: whether it wants `calibrate` called before training.
    """

    needs = Needs()
    needs_labels = False
    needs_masks = False
    normalize = False

    def __init__(self) -> None:
        super().__init__()
        self.student_layers: set[int] = set()

    @abstractmethod
    def forward(self, student: Outputs, teacher: Outputs, batch: BatchEncoding) -> Tensor:
        """The loss of one batch, a scalar: a mean over `count` items."""

    def count(self, batch: BatchEncoding) -> Tensor:
        """How many items the loss of a batch is the mean over; here its rows."""
        return batch["attention_mask"].new_full((), len(batch["attention_mask"]))

    def calibrate(self, variances: dict[int, float]) -> None:
        """Takes the variance of each of the teacher's layers over held-out tokens, if `normalize`."""


class HiddenStateObjective(Objective):
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
        self.student_layers = {i for i, _ in self.pairs}
        self.needs = Needs(states=frozenset(j for _, j in self.pairs))
        self.normalize = normalize == "variance"
        self.projections = nn.ModuleList(
            nn.Linear(student.hidden_size, teacher.hidden_size, bias=False) for _ in self.pairs
        )
        self.variance: Tensor
        self.register_buffer("variance", torch.ones(len(self.pairs)))

    def calibrate(self, variances: dict[int, float]) -> None:
        self.variance.copy_(torch.tensor([variances[j] for _, j in self.pairs]))

    def count(self, batch: BatchEncoding) -> Tensor:
        return batch["attention_mask"].sum()

    def forward(self, student: Outputs, teacher: Outputs, batch: BatchEncoding) -> Tensor:
        terms = [
            hidden_state_mse(projection(student.states[i]), teacher.states[j], variance)
            for (i, j), projection, variance in zip(self.pairs, self.projections, self.variance, strict=True)
        ]
        return torch.stack(terms).mean()


class Representation(Objective):
    """The last layers' states: KD-NAS v1, Eq. 1, and what the public code of XtremeDistil trains in its place.

    L = loss(z_S R, z_T) with one bias-free projection R (d_S x d_T).

    Args:
        student, teacher: their configs.
        loss: `kl` (Eq. 1) or `mse` (the public code).
        tokens: `first` (that of [CLS]) or `all` real ones.
    """

    def __init__(
        self, student: PreTrainedConfig, teacher: PreTrainedConfig, loss: str = "mse", tokens: str = "first"
    ) -> None:
        super().__init__()
        self.last, self.target = student.num_hidden_layers, teacher.num_hidden_layers
        self.student_layers, target = {self.last}, frozenset({self.target})
        self.needs = Needs(first=target) if tokens == "first" else Needs(states=target)
        self.loss, self.first_only = REPRESENTATION_LOSSES[loss], tokens == "first"
        self.projection = nn.Linear(student.hidden_size, teacher.hidden_size, bias=False)

    def count(self, batch: BatchEncoding) -> Tensor:
        return super().count(batch) if self.first_only else batch["attention_mask"].sum()

    def forward(self, student: Outputs, teacher: Outputs, batch: BatchEncoding) -> Tensor:
        own = student.states[self.last]
        if self.first_only:
            return self.loss(self.projection(own.index_select(0, Layout.of(batch).first)), teacher.first[self.target])
        return self.loss(self.projection(own), teacher.states[self.target])


class Logits(Objective):
    """Half the squared error of the logits: KD-NAS v1, Eq. 2."""

    needs = Needs(logits=True)

    def forward(self, student: Outputs, teacher: Outputs, batch: BatchEncoding) -> Tensor:
        assert student.logits is not None and teacher.logits is not None
        return logit_mse(student.logits, teacher.logits)


class HardLabels(Objective):
    """A task's loss with the labels: KD-NAS v1, Eq. 3.

    Args:
        loss: the task's `loss`.
    """

    needs_labels = True

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, student: Outputs, teacher: Outputs, batch: BatchEncoding) -> Tensor:
        assert student.logits is not None
        return self.loss(student.logits, batch["labels"])


class MaskedTokens(Objective):
    """Cross entropy of the masked tokens: BERT's objective."""

    needs_masks = True

    def count(self, batch: BatchEncoding) -> Tensor:
        return (batch["labels"] != -100).sum()

    def forward(self, student: Outputs, teacher: Outputs, batch: BatchEncoding) -> Tensor:
        assert student.logits is not None
        return MaskedTokensTask().loss(student.logits, batch["labels"][batch["labels"] != -100])


def check_normalize(name: str) -> None:
    if name not in ("none", "variance"):
        raise ConfigError(f"objective.normalize={name}: must be one of none, variance")
