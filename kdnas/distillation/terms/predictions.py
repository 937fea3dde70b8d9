"""Terms of predictions: logits against the teacher's, or against labels."""

from torch import Tensor
from transformers import BatchEncoding, PreTrainedConfig

from kdnas import tasks
from kdnas.base.errors import ConfigError, chosen, is_number, require
from kdnas.distillation.losses import logits
from kdnas.distillation.terms.base import LossTerm, Mean, count_of
from kdnas.models.features import LOGITS, MASKED_LOGITS, Features, Per
from kdnas.tasks import LabelledTask

PREDICTIONS = {"rows": LOGITS, "masked_tokens": MASKED_LOGITS}


class Logits(LossTerm):
    """Half the squared error of the logits: KD-NAS v1, Eq. 2.

    Args:
        of: `rows`, the logits of classifiers, or `masked_tokens`, those of masked language models.
    """

    def __init__(self, of: str = "rows") -> None:
        super().__init__()
        self.feature = chosen("of", of, PREDICTIONS)
        self.student = self.teacher = frozenset({self.feature})
        self.needs_masks = self.feature == MASKED_LOGITS

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        return logits.mse(student, teacher)

    def forward(self, student: Features, teacher: Features, batch: BatchEncoding) -> Mean:
        return Mean(self.loss(student[self.feature], teacher[self.feature]), count_of(batch, self.feature.per))


class SoftTargets(Logits):
    """T^2 KL(teacher || student) of the classes' probabilities at a temperature T (Hinton et al., 2015).

    Args:
        temperature: flattens the probabilities of both where it is above 1.
        of: see `Logits`.
    """

    def __init__(self, temperature: float = 2.0, of: str = "rows") -> None:
        super().__init__(of)
        require(is_number(temperature) and temperature > 0, "temperature", temperature, "a number above 0")
        self.temperature = float(temperature)

    def build(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
        if self.feature == LOGITS and student.num_labels == 1:
            raise ConfigError(
                "objective: soft targets are probabilities of classes, of which a regression has none; must be its "
                "logits (kdnas.distillation.terms.Logits)"
            )

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        return logits.soft_targets(student, teacher, self.temperature)


class HardLabels(LossTerm):
    """The loss of a task for the rows' labels: KD-NAS v1, Eq. 3."""

    needs_labels = True

    def __init__(self, task: LabelledTask) -> None:
        super().__init__()
        require(isinstance(task, LabelledTask), "task", task, "a task, as task=rte")
        self.task, self.student = task, frozenset({task.feature})

    def forward(self, student: Features, teacher: Features, batch: BatchEncoding) -> Mean:
        return Mean(self.task.loss(student[self.task.feature], batch["labels"]), count_of(batch, Per.ROW))


class MaskedTokens(LossTerm):
    """Cross entropy of the masked tokens: BERT's objective."""

    student = frozenset({MASKED_LOGITS})
    needs_masks = True

    def forward(self, student: Features, teacher: Features, batch: BatchEncoding) -> Mean:
        labels = batch["labels"][batch["labels"] != -100]
        return Mean(tasks.MaskedTokens().loss(student[MASKED_LOGITS], labels), count_of(batch, Per.MASKED_TOKEN))
