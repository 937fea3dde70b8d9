"""Loads configs, tokenizers and encoders from folders and the hub; refuses what is no supported encoder."""

from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from kdnas.base.errors import ConfigError, require, require_whole, shown
from kdnas.base.files import reading
from kdnas.models.architecture import Architecture
from kdnas.models.building import DATA, check_encoder, from_folder, without_pooler
from kdnas.models.families import architecture_of, family_of
from kdnas.models.resizing import check_activation
from kdnas.models.trial import refusal

ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flex_attention")
"""The attention implementations that a config may name; other names load code from the hub."""


def load_config(path: str, key: str = "teacher.path") -> PreTrainedConfig:
    """Loads the config of a supported encoder on disk or on the hub; `key` is the setting that error messages name."""
    if not isinstance(path, str) or not path:
        raise ConfigError(f"{key}={shown(path)}: must be a folder that holds a model, or a hub id")
    with reading(key, path):
        config = AutoConfig.from_pretrained(path, **DATA)
    return check_config(config, key, path)


def check_config(config: PreTrainedConfig, key: str, path: str) -> PreTrainedConfig:
    """Refuses the config of a model that is no supported encoder, or that would load code from the hub."""
    family_of(config)
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
    check_activation(architecture_of(config).hidden_act)
    require_whole("vocab_size", config.vocab_size, 1)
    padding = config.pad_token_id
    fits = padding is None or (isinstance(padding, int) and 0 <= padding < config.vocab_size)
    require(fits, "pad_token_id", padding, f"below vocab_size={config.vocab_size}")
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None:
        require_whole("max_position_embeddings", positions, 1)


def load_tokenizer(path: str, key: str = "teacher.path") -> Tokenizer:
    """Loads a model's tokenizer; `key` as in `load_config`."""
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
