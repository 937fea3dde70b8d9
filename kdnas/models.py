"""Teachers and students as plain Hugging Face models."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pickle import UnpicklingError
from textwrap import shorten
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
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
from kdnas.errors import ConfigError, is_number, require, require_whole, shown

DATA: dict[str, Any] = {"trust_remote_code": False}
"""How anything of a model is loaded: code that comes with it is not run, and nobody is asked whether it may be."""
WEIGHTS = DATA | {"weights_only": True, "dtype": torch.float32}
"""How weights are: of a pickle, tensors and nothing else."""
ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flex_attention")
"""What a config may ask for; other names are of code on the hub."""

REASON = 200
"""Characters of another library's message that are worth telling."""


@contextmanager
def reading(
    key: str, path: object, what: str = "model", allowed: str = "a folder that holds one, or a hub id within reach"
) -> Iterator[None]:
    """Blames a file, by the setting that names it, for what its reader raises, which of a broken file can be anything.

    Raises:
        ConfigError: in place of any exception.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        if met := disk_error(error):  # a cache that cannot be written to
            raise met from error
        reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        if isinstance(error, UnpicklingError):  # torch's own words say how to run the code
            reason = "damaged, or holding code"
        raise ConfigError(
            f"{key}={path}: no {what} there that can be read; must be {allowed} ({shorten(reason, REASON)})"
        ) from error


def load_config(path: str, key: str = "teacher.path") -> PreTrainedConfig:
    """The config of a model on disk or on the hub; `key` is the setting to blame when there is none."""
    if not isinstance(path, str) or not path:
        raise ConfigError(f"{key}={shown(path)}: must be a folder that holds a model, or a hub id")
    with reading(key, path):
        config = AutoConfig.from_pretrained(path, **DATA)
    return check_config(config, key, path)


def check_config(config: PreTrainedConfig, key: str, path: str) -> PreTrainedConfig:
    """Refuses the config of a model that is no encoder of ours, or that would have code fetched."""
    missing = [name for name in Architecture.__dataclass_fields__ if not hasattr(config, name)]
    if missing:
        raise ConfigError(
            f"{key}={path}: a {config.model_type} model has no {', '.join(missing)}; use a BERT-like encoder"
        )
    try:
        architecture_of(config)
    except ConfigError as error:
        raise ConfigError(f"{key}={path}: its config is of no encoder ({error})") from error
    if config._attn_implementation not in ATTENTION:
        raise ConfigError(
            f"{key}={path}: its config asks for the attention {config._attn_implementation}; must be sdpa or eager"
        )
    return config


def load_tokenizer(path: str, key: str = "teacher.path") -> Tokenizer:
    with reading(key, path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, **DATA)
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes up where there is none
            raise ValueError("it knows no words")
        return tokenizer


def load_encoder(path: str, key: str = "teacher.path") -> PreTrainedModel:
    """A pretrained encoder in fp32, in evaluation mode, without its pooler."""
    load_config(path, key)
    with reading(key, path):
        return _without_pooler(AutoModel.from_pretrained(path, **WEIGHTS)).eval()


def _without_pooler(model: PreTrainedModel) -> PreTrainedModel:
    """No objective here trains the pooler, so it is left out: what is exported holds trained weights only."""
    if hasattr(model, "pooler"):
        setattr(model, "pooler", None)  # noqa: B010 - a module's own assignment takes only tensors and modules
    return model


def check_activation(name: str) -> None:
    if name not in ACT2FN:
        raise ConfigError(f"architecture.hidden_act={name}: must be one of {', '.join(sorted(ACT2FN))}")


def check_dropout(share: Any) -> None:
    fits = share is None or (is_number(share) and 0 <= share < 1)
    require(fits, "module.dropout", share, "from 0 to below 1, or null for the teacher's")


def student_config(
    teacher: PreTrainedConfig, architecture: Architecture, dropout: float | None = None
) -> PreTrainedConfig:
    """The teacher's config with the student's architecture: same family, vocabulary and positions.

    Args:
        dropout: of hidden states and attention; None keeps the teacher's.
    """
    check_activation(architecture.hidden_act)
    check_dropout(dropout)
    config = copy.deepcopy(teacher)
    settings: dict[str, Any] = architecture.to_dict() | {"dtype": "float32", "architectures": None}
    if dropout is not None:
        settings |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config.update(settings)
    return config


def new_encoder(config: PreTrainedConfig, seed: int | None = None) -> PreTrainedModel:
    """A randomly initialised encoder without a pooler. With a seed, the global generators are left as they were."""
    if seed is None:
        return _without_pooler(AutoModel.from_config(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _without_pooler(AutoModel.from_config(config))


class Head(ABC):
    """Which model a student is, and what its teacher must be."""

    def config(self, path: str) -> PreTrainedConfig:
        """The teacher's."""
        return load_config(path)

    @abstractmethod
    def load(self, path: str) -> PreTrainedModel:
        """The teacher, in fp32 and in evaluation mode."""

    @abstractmethod
    def make(self, config: PreTrainedConfig) -> PreTrainedModel:
        """A student with random weights."""

    def new(self, config: PreTrainedConfig, seed: int) -> PreTrainedModel:
        """A student whose weights the seed alone decides; the global generators are left as they were."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make(config)


@dataclass(frozen=True)
class Encoder(Head):
    """No head: the states are all that counts."""

    def load(self, path: str) -> PreTrainedModel:
        return load_encoder(path)

    def make(self, config: PreTrainedConfig) -> PreTrainedModel:
        return new_encoder(config)


@dataclass(frozen=True)
class MaskedLM(Encoder):
    """A masked language model; of the teacher, the encoder is enough."""

    def make(self, config: PreTrainedConfig) -> PreTrainedModel:
        if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
            raise ConfigError(f"teacher.path: a {config.model_type} has no masked language model; use BERT's family")
        return AutoModelForMaskedLM.from_config(config)


@dataclass(frozen=True)
class Classifier(Head):
    """A sequence classifier (with one label, a regressor); the teacher must have been fine-tuned to the same classes.

    Raises:
        ConfigError: a teacher with another number of classes, or (in `load`) without a trained classifier.
    """

    num_labels: int

    def __post_init__(self) -> None:
        require_whole("task.num_labels", self.num_labels, 1)

    def config(self, path: str) -> PreTrainedConfig:
        config = load_config(path)
        if config.num_labels != self.num_labels:
            raise ConfigError(
                f"teacher.path={path}: tells {config.num_labels} classes apart; the task has {self.num_labels}"
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
        return model.eval()

    def make(self, config: PreTrainedConfig) -> PreTrainedModel:
        return AutoModelForSequenceClassification.from_config(config)


def unfreezing_groups(model: PreTrainedModel) -> list[list[nn.Parameter]]:
    """A model's parameters from the top down: the head, each layer from the last to the first, the embeddings.

    Layers that share their weights (ALBERT's) are one group.
    """
    encoder: Any = model.base_model
    depth = model.config.num_hidden_layers
    lists = (part for part in encoder.modules() if isinstance(part, nn.ModuleList) and len(part) == depth)
    blocks = [*reversed(next(lists, [encoder.encoder])), encoder.embeddings]
    below = [list(block.parameters()) for block in blocks]
    taken = {id(parameter) for group in below for parameter in group}
    return [[parameter for parameter in model.parameters() if id(parameter) not in taken], *below]


def positions(config: PreTrainedConfig) -> int:
    """The longest input."""
    return config.max_position_embeddings - first_position(config)


def first_position(config: PreTrainedConfig) -> int:
    """The number of a row's first position: RoBERTa's family counts from the padding id onwards."""
    return config.pad_token_id + 1 if "roberta" in config.model_type else 0


def architecture_of(config: PreTrainedConfig) -> Architecture:
    return Architecture.of({name: getattr(config, name) for name in Architecture.__dataclass_fields__})


@cache
def _parameters(path: str, num_hidden_layers: int, hidden_size: int, intermediate_size: int) -> int:
    architecture = Architecture(num_hidden_layers, 1, hidden_size, intermediate_size, "gelu")
    return count_parameters(student_config(load_config(path), architecture))


def count_parameters(config: PreTrainedConfig) -> int:
    """Parameters of the encoder, embeddings included, pooler not."""
    with torch.device("meta"):
        return new_encoder(config).num_parameters()


def count_flops(config: PreTrainedConfig, batch_size: int, length: int) -> int:
    """Floating-point operations of one forward pass (matrix products and attention)."""
    with torch.device("meta"):
        model = new_encoder(config).eval()
        tokens = torch.zeros(batch_size, length, dtype=torch.long)
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            model(input_ids=tokens)
    return counter.get_total_flops()


class WithinTeacher:
    """A constraint on a search space: no deeper than the teacher, and (optionally) no more parameters.

    Args:
        teacher: path or hub id.
        parameters: whether students with more parameters than the teacher are left out too.
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
