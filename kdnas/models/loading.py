"""Teachers and students as plain Hugging Face models."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.activations import ACT2FN

from kdnas.base.errors import ConfigError, is_number, require, require_whole, shown
from kdnas.base.files import reading
from kdnas.models.architecture import Architecture
from kdnas.models.families import architecture_of, count_parameters, resize, without_pooler
from kdnas.models.trial import refusal
from kdnas.models.weights import DATA, check_encoder, from_folder

ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flex_attention")
"""The attention implementations that a config may name; other names load code from the hub."""


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
