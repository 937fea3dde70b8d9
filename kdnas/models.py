"""Teachers and students as plain Hugging Face models."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.activations import ACT2FN

from kdnas.architecture import Architecture
from kdnas.disk import disk_error
from kdnas.errors import ConfigError, is_number, reason, require, require_whole, shown
from kdnas.families import architecture_of, count_parameters, make, new_encoder, resize, without_pooler
from kdnas.tasks.classes import name_classes, names_of, teacher_order
from kdnas.trial import refusal
from kdnas.weights import DATA, WEIGHTS, check_encoder, check_finite, from_folder

ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flex_attention")
"""The attention implementations that a config may name; other names load code from the hub."""


@contextmanager
def reading(
    key: str, path: object, what: str = "model", allowed: str = "a folder that holds one, or a hub id within reach"
) -> Iterator[None]:
    """Turns any error of reading a file into a `ConfigError` that names the setting: broken files can raise anything.

    Args:
        key, path: the setting that names the file, and its value.
        what: the kind of content, for the message.
        allowed: what the setting may be.

    Raises:
        ConfigError: in place of any exception.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        if met := disk_error(error):  # as a hub cache on a full disk
            raise met from error
        # Torch's message about code in weights says how to run it.
        said = "damaged, or holding code" if isinstance(error, UnpicklingError) else reason(error)
        raise ConfigError(f"{key}={path}: no {what} there that can be read; must be {allowed} ({said})") from error


def load_config(path: str, key: str = "teacher.path") -> PreTrainedConfig:
    """Loads the config of a model on disk or on the hub; `key` is the setting that error messages name."""
    if not isinstance(path, str) or not path:
        raise ConfigError(f"{key}={shown(path)}: must be a folder that holds a model, or a hub id")
    with reading(key, path):
        config = AutoConfig.from_pretrained(path, **DATA)
    return check_config(config, key, path)


def check_config(config: PreTrainedConfig, key: str, path: str) -> PreTrainedConfig:
    """Refuses the config of a model that is no supported encoder, or that would load code from the hub."""
    missing = [name for name in Architecture.__dataclass_fields__ if not hasattr(config, name)]
    if missing:
        raise ConfigError(
            f"{key}={path}: a {config.model_type} model has no {', '.join(missing)}; use a BERT-like encoder"
        )
    try:
        _check_values(config)
    except (ConfigError, AttributeError) as error:
        raise ConfigError(f"{key}={path}: its config is of no encoder ({error})") from error
    if config._attn_implementation not in ATTENTION:
        raise ConfigError(
            f"{key}={path}: its config asks for the attention {config._attn_implementation}; must be sdpa or eager"
        )
    if getattr(config, "quantization_config", None):
        raise ConfigError(f"{key}={path}: its weights are quantized; must be of the model as it was before that")
    if why := refusal(config):
        raise ConfigError(
            f"{key}={path}: a {config.model_type} model cannot be distilled or fine-tuned here ({why}); "
            "must be of a family that docs/models.md lists"
        )
    return config


def _check_values(config: PreTrainedConfig) -> None:
    """Refuses values that are invalid for every encoder."""
    check_activation(architecture_of(config).hidden_act)
    require_whole("vocab_size", config.vocab_size, 1)
    padding = config.pad_token_id
    fits = padding is None or (isinstance(padding, int) and 0 <= padding < config.vocab_size)
    require(fits, "pad_token_id", padding, f"below vocab_size={config.vocab_size}")
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None:
        require_whole("max_position_embeddings", positions, 1)


def load_tokenizer(path: str, key: str = "teacher.path") -> Tokenizer:
    with reading(key, path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, **DATA)
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers' stand-in for a missing tokenizer
            raise ValueError("its vocabulary is empty")
        return tokenizer


def load_encoder(path: str, key: str = "teacher.path") -> PreTrainedModel:
    """Loads a pretrained encoder in fp32, in evaluation mode, without its pooler."""
    config = load_config(path, key)
    with reading(key, path):
        model, wrong = from_folder(AutoModel, path, config)
    check_encoder(model, wrong, f"{key}={path}")
    return without_pooler(model).eval()


def check_activation(name: str) -> None:
    if name not in ACT2FN:
        raise ConfigError(f"architecture.hidden_act={name}: must be one of {', '.join(sorted(ACT2FN))}")


def check_dropout(share: Any) -> None:
    fits = share is None or (is_number(share) and 0 <= share < 1)
    require(fits, "module.dropout", share, "from 0 to below 1, or null for the teacher's")


def student_config(teacher: PreTrainedConfig, architecture: Architecture) -> PreTrainedConfig:
    """Returns the teacher's config with the student's architecture: same family, vocabulary, positions and dropout."""
    check_activation(architecture.hidden_act)
    return resize(teacher, architecture)


def dropouts(config: PreTrainedConfig) -> dict[str, float]:
    """Returns every dropout probability in a config, by its family's name for it."""
    return {name: value for name, value in vars(config).items() if "dropout" in name and is_number(value)}


def take_padding(config: PreTrainedConfig, tokenizer: Tokenizer) -> None:
    """Sets a student's padding token to its tokenizer's, whose embedding is then not trained."""
    token = tokenizer.pad_token_id
    if token is not None and token < config.vocab_size:
        config.pad_token_id = token


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

    def teacher_order(
        self, path: str, teacher: PreTrainedConfig, names: Sequence[str] | None
    ) -> tuple[int, ...] | None:
        """Returns, for each of the data's classes, the index of its logit in the teacher's; None if all are equal."""
        return None

    def config(self, path: str) -> PreTrainedConfig:
        """Loads the teacher's config."""
        return load_config(path)

    @abstractmethod
    def load(self, path: str) -> PreTrainedModel:
        """Loads the teacher, in fp32 and in evaluation mode."""

    @abstractmethod
    def make(self, config: PreTrainedConfig) -> PreTrainedModel:
        """Builds a student with random weights."""

    def new(self, config: PreTrainedConfig, seed: int, dropout: float | None = None) -> PreTrainedModel:
        """Builds a student whose weights depend on the seed alone; restores the state of the global generators.

        Args:
            dropout: the probability of all of its dropout layers while it is distilled; None for the config's values.
                Its config keeps its own values, for the export and fine-tuning.
        """
        check_dropout(dropout)
        own, built = dropouts(config), copy.deepcopy(config)
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
class MaskedLM(Encoder):
    """A masked language model; the teacher may be an encoder without a head."""

    def make(self, config: PreTrainedConfig) -> PreTrainedModel:
        if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
            raise ConfigError(f"teacher.path: a {config.model_type} has no masked language model; use BERT's family")
        return make(AutoModelForMaskedLM, config)


@dataclass(frozen=True)
class Classifier(Head):
    """A sequence classifier (with one label, a regressor); the teacher must be fine-tuned on the same classes.

    Raises:
        ConfigError: the teacher has another number of classes, or (in `load`) no trained classifier.
    """

    num_labels: int

    def __post_init__(self) -> None:
        require_whole("task.num_labels", self.num_labels, 1)

    def describe(self, config: PreTrainedConfig, names: Sequence[str] | None = None) -> None:
        name_classes(config, self.num_labels, names)
        config.problem_type = "regression" if self.num_labels == 1 else "single_label_classification"

    def names_of_teacher(self, teacher: PreTrainedConfig) -> tuple[str, ...] | None:
        return names_of(teacher)

    def teacher_order(
        self, path: str, teacher: PreTrainedConfig, names: Sequence[str] | None
    ) -> tuple[int, ...] | None:
        return teacher_order(path, names_of(teacher), names)

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
        with reading("teacher.path", path):
            model, report = AutoModelForSequenceClassification.from_pretrained(
                path, output_loading_info=True, **WEIGHTS
            )
        if report["missing_keys"]:
            raise ConfigError(f"teacher.path={path}: has no classifier; must be fine-tuned on the task first")
        check_finite(model, f"teacher.path={path}")
        return model.eval()

    def make(self, config: PreTrainedConfig) -> PreTrainedModel:
        return make(AutoModelForSequenceClassification, config)


def unfreezing_groups(model: PreTrainedModel) -> list[list[nn.Parameter]]:
    """Returns a model's parameters top-down: the head, each layer from the last to the first, the embeddings.

    Layers that share their weights (ALBERT's) are one group.
    """
    encoder: Any = model.base_model
    depth = model.config.num_hidden_layers
    lists = (part for part in encoder.modules() if isinstance(part, nn.ModuleList) and len(part) == depth)
    blocks = [*reversed(next(lists, [encoder.encoder])), encoder.embeddings]
    below = [list(block.parameters()) for block in blocks]
    taken = {id(parameter) for group in below for parameter in group}
    return [[parameter for parameter in model.parameters() if id(parameter) not in taken], *below]


@cache
def _parameters(path: str, num_hidden_layers: int, hidden_size: int, intermediate_size: int) -> int:
    architecture = Architecture(num_hidden_layers, 1, hidden_size, intermediate_size, "gelu")
    return count_parameters(student_config(load_config(path), architecture))


class WithinTeacher:
    """A constraint on a search space: no more layers and, optionally, no more parameters than the teacher has.

    Args:
        teacher: the teacher's path or hub id.
        parameters: whether to exclude students with more parameters than the teacher.
    """

    def __init__(self, teacher: str, parameters: bool = False) -> None:
        self.path = teacher
        self.parameters = parameters

    def __call__(self, architecture: Architecture) -> bool:
        teacher = _cached_config(self.path)
        if architecture.num_hidden_layers > teacher.num_hidden_layers:
            return False
        if not self.parameters:
            return True
        size = (architecture.num_hidden_layers, architecture.hidden_size, architecture.intermediate_size)
        own = (teacher.num_hidden_layers, teacher.hidden_size, teacher.intermediate_size)
        return _parameters(self.path, *size) <= _parameters(self.path, *own)


@lru_cache(maxsize=8)
def _cached_config(path: str) -> PreTrainedConfig:
    return load_config(path)
