"""Loads configs, tokenizers and encoders from Hugging Face folders and the hub."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from kdnas.base.errors import ConfigError, shown
from kdnas.base.files import reading
from kdnas.models.building import without_pooler
from kdnas.models.trial import check_config
from kdnas.models.weights import DATA, check_encoder, from_folder


def load_config(path: str, key: str = "teacher.path") -> PreTrainedConfig:
    """Loads the config of a model on disk or on the hub.

    Args:
        key: the setting that error messages name.

    Raises:
        ConfigError: no model there, or one that is no supported encoder.
    """
    if not isinstance(path, str) or not path:
        raise ConfigError(f"{key}={shown(path)}: must be a folder that holds a model, or a hub id")
    with reading(key, path):
        config = AutoConfig.from_pretrained(path, **DATA)
    return check_config(config, key, path)


def load_tokenizer(path: str, key: str = "teacher.path") -> Tokenizer:
    """Loads a model's tokenizer; `key` is the setting that error messages name."""
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
