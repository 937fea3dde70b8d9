"""The kinds of student model: an encoder, a masked language model, a classifier; and how a head's model unfreezes."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from kdnas.base.errors import ConfigError, is_number, require, require_whole
from kdnas.base.files import reading
from kdnas.models.building import WEIGHTS, check_finite, make, new_encoder
from kdnas.models.classes import name_classes, names_of
from kdnas.models.families import family_of
from kdnas.models.features import MASKED_LOGITS, Feature
from kdnas.models.loading import load_config, load_encoder

ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]


class Head(ABC):
    """The kind of student model, and the requirements on its teacher."""

    num_labels = 2
    """The number of classes; 2 is transformers' default for models without classes."""

    def describe(self, config: PreTrainedConfig, names: Sequence[str] | None = None) -> None:
        """Writes the classes into a student's config, in place of those of the teacher's config."""
        name_classes(config, self.num_labels)
        config.problem_type = None

    def names_of_teacher(self, teacher: PreTrainedConfig) -> tuple[str, ...] | None:
        """Returns the names that a teacher has for the classes, for data that have none; None without names."""
        return None

    def config(self, path: str) -> PreTrainedConfig:
        """Loads the teacher's config."""
        return load_config(path)

    def of_teacher(self, features: Collection[Feature]) -> "Head":
        """Returns the kind of model that the teacher is loaded as, to give these features."""
        return self

    @abstractmethod
    def load(self, path: str) -> PreTrainedModel:
        """Loads the teacher, in fp32 and in evaluation mode."""

    @abstractmethod
    def make(self, config: PreTrainedConfig) -> PreTrainedModel:
        """Builds a student with random weights."""

    def new(self, config: PreTrainedConfig, seed: int, dropout: float | None = None) -> PreTrainedModel:
        """Builds a student whose weights depend on the seed alone; restores the state of the global generators.

        A `dropout` holds while it is distilled; its config keeps its own values, for the export and fine-tuning.
        """
        check_dropout(dropout)
        own, built = family_of(config).dropouts(config), copy.deepcopy(config)
        if dropout is not None:
            built.update(dict.fromkeys(own, dropout))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.make(built)
        model.config.update(own)
        return model


@dataclass(frozen=True)
class Encoder(Head):
    """An encoder without a head: only its hidden states are used."""

    def load(self, path: str) -> PreTrainedModel:
        return load_encoder(path)

    def make(self, config: PreTrainedConfig) -> PreTrainedModel:
        return new_encoder(config)


@dataclass(frozen=True)
class MaskedLM(Head):
    """A masked language model. The teacher may be an encoder, unless its predictions of masked tokens are needed.

    Raises:
        ConfigError: (in `load`) the teacher has no trained head, or (in `make`) its family has none.
    """

    def of_teacher(self, features: Collection[Feature]) -> Head:
        return self if MASKED_LOGITS in features else Encoder()

    def load(self, path: str) -> PreTrainedModel:
        return _with_head(AutoModelForMaskedLM, path, "no head for masked tokens; must be a masked language model")

    def make(self, config: PreTrainedConfig) -> PreTrainedModel:
        if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
            raise ConfigError(f"teacher.path: a {config.model_type} has no masked language model; use BERT's family")
        return make(AutoModelForMaskedLM, config)


@dataclass(frozen=True)
class Classifier(Head):
    """A model with a linear layer for classes, on a pooled row; the teacher must be fine-tuned on the same classes.

    Raises:
        ConfigError: the teacher has another number of classes, or (in `load`) no trained classifier.
    """

    num_labels: int
    problem_type: ProblemType = "single_label_classification"
    auto: ClassVar[Any] = AutoModelForSequenceClassification
    """The class of transformers that makes such models."""

    def __post_init__(self) -> None:
        require_whole("num_labels", self.num_labels, 1)

    def describe(self, config: PreTrainedConfig, names: Sequence[str] | None = None) -> None:
        name_classes(config, self.num_labels, names)
        config.problem_type = self.problem_type

    def names_of_teacher(self, teacher: PreTrainedConfig) -> tuple[str, ...] | None:
        return names_of(teacher)

    def config(self, path: str) -> PreTrainedConfig:
        config = load_config(path)
        if config.num_labels != self.num_labels:
            raise ConfigError(
                f"teacher.path={path}: the teacher has {config.num_labels} labels, the task {self.num_labels} "
                f"(task.num_labels)"
            )
        return config

    def load(self, path: str) -> PreTrainedModel:
        self.config(path)
        return _with_head(self.auto, path, "no classifier; must be fine-tuned on the task first")

    def make(self, config: PreTrainedConfig) -> PreTrainedModel:
        return make(self.auto, config)


def _with_head(auto: Any, path: str, refusal: str) -> PreTrainedModel:
    """Loads a teacher with its head by one of the Auto classes; the refusal says what a teacher without it lacks."""
    with reading("teacher.path", path):
        model, report = auto.from_pretrained(path, output_loading_info=True, **WEIGHTS)
    if report["missing_keys"]:
        raise ConfigError(f"teacher.path={path}: has {refusal}")
    check_finite(model, f"teacher.path={path}")
    return model.eval()


def check_dropout(share: Any) -> None:
    fits = share is None or (is_number(share) and 0 <= share < 1)
    require(fits, "dropout", share, "from 0 to below 1, or null for the teacher's")


def unfreezing_groups(model: PreTrainedModel) -> list[list[nn.Parameter]]:
    """Returns a model's parameters top-down: the head, each layer from the last to the first, the embeddings.

    Layers that share their weights (ALBERT's) are one group.
    """
    blocks = family_of(model.config).blocks(model)
    below = [[parameter for part in block for parameter in part.parameters()] for block in blocks]
    taken = {id(parameter) for group in below for parameter in group}
    return [[parameter for parameter in model.parameters() if id(parameter) not in taken], *below]
