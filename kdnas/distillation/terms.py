"""Loss terms: what a student is trained to match. A term belongs to one student and owns what it learns beside it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import BatchEncoding, PreTrainedConfig

from kdnas import tasks
from kdnas.base.errors import chosen, require
from kdnas.distillation.losses import hidden_state_mse, logit_mse, representation_kl
from kdnas.distillation.mapping import MAPPINGS, map_layers
from kdnas.models.features import LOGITS, MASKED_LOGITS, Feature, Features, Per, hidden_state
from kdnas.models.initialisation.fitting import LeastSquares
from kdnas.tasks import LabelledTask

REPRESENTATION_LOSSES = {"kl": representation_kl, "mse": hidden_state_mse}
REPRESENTATION_TOKENS = {"first": Per.FIRST_TOKEN, "all": Per.TOKEN}
NORMALIZATIONS = {"none": False, "variance": True}


@dataclass(frozen=True)
class Mean:
    """A mean over some items of a batch, scalars both: means of several batches or devices can be combined."""

    value: Tensor
    count: Tensor

    @property
    def total(self) -> Tensor:
        return self.value * self.count


class LossTerm(nn.Module, ABC):
    """One loss of one student.

    A config makes a term from its settings, which the constructor checks; every student gets a copy, which `build`
    fits to its config.

    Attributes:
        student, teacher: the features that `forward` takes of each; `build` may set them.
        needs_labels: whether the rows must have labels.
        needs_masks: whether tokens must be masked.
        normalized_by: the teacher's features whose variances `calibrate` takes before training.
    """

    student: frozenset[Feature] = frozenset()
    teacher: frozenset[Feature] = frozenset()
    needs_labels = False
    needs_masks = False
    normalized_by: frozenset[Feature] = frozenset()

    def build(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
        """Makes what the term learns, and sets its features, for a student's config and the teacher's.

        Raises:
            ConfigError: the term does not go with these models.
        """

    @abstractmethod
    def forward(self, student: Features, teacher: Features, batch: BatchEncoding) -> Mean:
        """Returns the loss of a batch."""

    def fit(self, student: Features, teacher: Features) -> None:
        """Fits what the term learns to hidden states on a sample of text, for a student that begins near its teacher.

        `student` and `teacher` have those of the term's features that are hidden states.
        """

    def calibrate(self, variances: Mapping[Feature, float]) -> None:
        """Takes the variance of each feature of `normalized_by`: over held-out items, averaged over the width."""


class HiddenStates(LossTerm):
    """Hidden-state transfer (KD-NAS v2, Eq. 1), as the mean over the mapped pairs of layers.

    L = 1/|P| sum over (i, j) in P of MSE(H_i^S W_i^j, H_j^T), over real tokens, with one bias-free projection
    W_i^j (d_S x d_T) for each pair P of student layer i and teacher layer j. The mean, not Eq. 1's sum: a sum
    would punish depth.

    Args:
        mapping: the name of a mapping in `kdnas.distillation.mapping`.
        normalize: `variance` divides each pair's loss by the variance of the teacher layer; `none` leaves it.
    """

    variance: Tensor

    def __init__(self, mapping: str = "uniform_last", normalize: str = "none") -> None:
        super().__init__()
        self.mapping = chosen("mapping", mapping, MAPPINGS)
        self.normalize = chosen("normalize", normalize, NORMALIZATIONS)

    def build(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
        layers = map_layers(self.mapping, student.num_hidden_layers, teacher.num_hidden_layers)
        self.pairs = [(i, j) for i, targets in enumerate(layers, start=1) for j in targets]
        self.student = frozenset(hidden_state(i) for i, _ in self.pairs)
        self.teacher = frozenset(hidden_state(j) for _, j in self.pairs)
        self.normalized_by = self.teacher if self.normalize else frozenset()
        self.projections = nn.ModuleList(
            nn.Linear(student.hidden_size, teacher.hidden_size, bias=False) for _ in self.pairs
        )
        self.register_buffer("variance", torch.ones(len(self.pairs)))

    def fit(self, student: Features, teacher: Features) -> None:
        for (i, j), projection in zip(self.pairs, self.projections, strict=True):
            squares = LeastSquares(student[hidden_state(i)], centred=False)
            squares.fit(projection.get_parameter("weight"), None, teacher[hidden_state(j)])

    def calibrate(self, variances: Mapping[Feature, float]) -> None:
        self.variance.copy_(torch.tensor([variances[hidden_state(j)] for _, j in self.pairs]))

    def forward(self, student: Features, teacher: Features, batch: BatchEncoding) -> Mean:
        losses = [
            hidden_state_mse(projection(student[hidden_state(i)]), teacher[hidden_state(j)], variance)
            for (i, j), projection, variance in zip(self.pairs, self.projections, self.variance, strict=True)
        ]
        return Mean(torch.stack(losses).mean(), tokens_of(batch))


class LastHiddenState(LossTerm):
    """The last layers' states: KD-NAS v1, Eq. 1, and what the public code of XtremeDistil trains in its place.

    L = loss(z_S R, z_T) with one bias-free projection R (d_S x d_T).

    Args:
        loss: `kl` (Eq. 1) or `mse` (the public code).
        tokens: `first` (that of [CLS]) or `all` real ones.
    """

    def __init__(self, loss: str = "mse", tokens: str = "first") -> None:
        super().__init__()
        self.loss = chosen("loss", loss, REPRESENTATION_LOSSES)
        self.per = chosen("tokens", tokens, REPRESENTATION_TOKENS)

    def build(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
        self.last, self.target = (hidden_state(config.num_hidden_layers, self.per) for config in (student, teacher))
        self.student, self.teacher = frozenset({self.last}), frozenset({self.target})
        self.projection = nn.Linear(student.hidden_size, teacher.hidden_size, bias=False)

    def fit(self, student: Features, teacher: Features) -> None:
        LeastSquares(student[self.last], centred=False).fit(self.projection.weight, None, teacher[self.target])

    def forward(self, student: Features, teacher: Features, batch: BatchEncoding) -> Mean:
        count = rows_of(batch) if self.per is Per.FIRST_TOKEN else tokens_of(batch)
        return Mean(self.loss(self.projection(student[self.last]), teacher[self.target]), count)


class Logits(LossTerm):
    """Half the squared error of the logits: KD-NAS v1, Eq. 2."""

    student = teacher = frozenset({LOGITS})

    def forward(self, student: Features, teacher: Features, batch: BatchEncoding) -> Mean:
        return Mean(logit_mse(student[LOGITS], teacher[LOGITS]), rows_of(batch))


class HardLabels(LossTerm):
    """The loss of a task for the rows' labels: KD-NAS v1, Eq. 3."""

    needs_labels = True

    def __init__(self, task: LabelledTask) -> None:
        super().__init__()
        require(isinstance(task, LabelledTask), "task", task, "a task, as task=rte")
        self.task, self.student = task, frozenset({task.feature})

    def forward(self, student: Features, teacher: Features, batch: BatchEncoding) -> Mean:
        return Mean(self.task.loss(student[self.task.feature], batch["labels"]), rows_of(batch))


class MaskedTokens(LossTerm):
    """Cross entropy of the masked tokens: BERT's objective."""

    student = frozenset({MASKED_LOGITS})
    needs_masks = True

    def forward(self, student: Features, teacher: Features, batch: BatchEncoding) -> Mean:
        masked = batch["labels"] != -100
        return Mean(tasks.MaskedTokens().loss(student[MASKED_LOGITS], batch["labels"][masked]), masked.sum())


def tokens_of(batch: BatchEncoding) -> Tensor:
    return batch["attention_mask"].sum()


def rows_of(batch: BatchEncoding) -> Tensor:
    return batch["attention_mask"].new_full((), len(batch["attention_mask"]))
