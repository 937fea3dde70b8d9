"""A student's config: the teacher's with another architecture. What a family resizes is in `families/base.py`."""

from transformers import PreTrainedConfig
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.activations import ACT2FN

from kdnas.base.errors import ConfigError
from kdnas.models.architecture import Architecture
from kdnas.models.families import family_of


def student_config(teacher: PreTrainedConfig, architecture: Architecture) -> PreTrainedConfig:
    """Returns the teacher's config with the student's architecture: same family, vocabulary, positions and dropout."""
    check_activation(architecture.hidden_act)
    return family_of(teacher).resize(teacher, architecture)


def take_padding(config: PreTrainedConfig, tokenizer: Tokenizer) -> None:
    """Sets a student's padding token to its tokenizer's, whose embedding is then not trained."""
    token = tokenizer.pad_token_id
    if token is not None and token < config.vocab_size:
        config.pad_token_id = token


def check_activation(name: str) -> None:
    if name not in ACT2FN:
        raise ConfigError(f"architecture.hidden_act={name}: must be one of {', '.join(sorted(ACT2FN))}")
