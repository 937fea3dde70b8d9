"""Models of any family: building, resizing, counting parameters and FLOPs, and the longest input."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, DistilBertConfig, PreTrainedConfig, PreTrainedModel

from kdnas.models.architecture import Architecture

T = TypeVar("T")
# `attribute_map` maps standard names to a family's own. DistilBERT's lacks two of the five values, and the dropouts.
DistilBertConfig.attribute_map = {
    **DistilBertConfig.attribute_map,
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
TINY = Architecture(2, 2, 16, 24, "gelu")
"""The architecture of the tiny model that a family is tested with."""
WORDS = 64
"""The vocabulary size of a tiny model, if it has room for the special tokens."""
PROBED = 16
"""The number of positions of a tiny model."""


def make(auto: Any, config: PreTrainedConfig) -> PreTrainedModel:
    """Builds a model with random weights, in fp32 whatever type the config was stored with.

    Args:
        auto: one of transformers' Auto classes.
    """
    return auto.from_config(config, dtype=torch.float32)


def new_encoder(config: PreTrainedConfig, seed: int | None = None) -> PreTrainedModel:
    """Builds an encoder without a pooler. With a seed, the state of the global generators is restored."""
    if seed is None:
        return without_pooler(make(AutoModel, config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return without_pooler(make(AutoModel, config))


def without_pooler(model: PreTrainedModel) -> PreTrainedModel:
    """Removes the pooler: no objective here trains it, and exports hold trained weights only."""
    if hasattr(model, "pooler"):
        setattr(model, "pooler", None)  # noqa: B010 - a module's own assignment takes only tensors and modules
    return model


def architecture_of(config: PreTrainedConfig) -> Architecture:
    return Architecture.of({name: getattr(config, name) for name in Architecture.__dataclass_fields__})


def resize(config: PreTrainedConfig, architecture: Architecture) -> PreTrainedConfig:
    """Returns a config of the same family, vocabulary and positions with another architecture."""
    resized = copy.deepcopy(config)
    resized.update(architecture.to_dict() | {"dtype": "float32", "architectures": None})
    before = architecture_of(config)
    # Further sizes of some families follow from the five values. They are derived again if the config's were derived.
    for name, derive in DERIVED.items():
        if getattr(config, name, None) is not None and getattr(config, name) == derive(before):
            setattr(resized, name, derive(architecture))
    return resized


DERIVED: dict[str, Callable[[Architecture], int]] = {
    "pooler_hidden_size": lambda own: own.hidden_size,  # DeBERTa
    "num_key_value_heads": lambda own: own.num_attention_heads,  # EuroBERT
    "head_dim": lambda own: own.hidden_size // own.num_attention_heads,
}


def tiny(config: PreTrainedConfig, architecture: Architecture = TINY) -> PreTrainedConfig:
    """Returns a config of a tiny model of the same family, on which the family can be tested quickly."""
    small = resize(config, architecture)
    small.update({"_name_or_path": "", "transformers_version": None, "problem_type": None, "num_labels": 2})
    special = [getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "cls", "sep", "mask")]
    small.vocab_size = max(WORDS, *(1 + token for token in special if isinstance(token, int)))
    return small


def by_config(function: Callable[[PreTrainedConfig], T]) -> Callable[[PreTrainedConfig], T]:
    """Caches a function's results by the content of the config."""
    known: dict[str, T] = {}

    @wraps(function)
    def cached(config: PreTrainedConfig) -> T:
        key = f"{type(config)} {config.to_json_string(use_diff=False)}"
        if key not in known:
            known[key] = function(config)
        return known[key]

    return cached


def apart(function: Callable[..., T]) -> Callable[..., T]:
    """Runs a function on the CPU, with gradients and in fp32, and restores the state of the global generator."""

    @wraps(function)
    def alone(*given: Any) -> T:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.autocast("cpu", enabled=False):
            torch.default_generator.manual_seed(0)  # the CPU's generator alone
            with torch.enable_grad():
                return function(*given)

    return alone


# -- positions


def positions(config: PreTrainedConfig) -> float:
    """Returns the longest input in tokens; infinite for families without a table of absolute positions."""
    table = getattr(config, "max_position_embeddings", None)
    skipped = _skipped_positions(tiny(config))
    return math.inf if table is None or skipped is None else table - skipped


def first_position(model: PreTrainedModel) -> int:
    """Returns the index of a row's first position: models like RoBERTa count from the padding index + 1."""
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1


@by_config
@apart
@torch.no_grad()
def _skipped_positions(config: PreTrainedConfig) -> int | None:
    """Returns how many positions of the table no token can use; None where inputs may be longer than the table."""
    small = copy.deepcopy(config)
    skipped = first_position(new_encoder(small))
    small.max_position_embeddings = skipped + PROBED
    try:
        run(new_encoder(small).eval(), PROBED + 1)
    except (IndexError, RuntimeError):
        return skipped
    return None


def run(model: PreTrainedModel, length: int) -> Any:
    """Runs a model on two rows of arbitrary tokens, (2, length); the second row ends with padding."""
    padding = model.config.pad_token_id
    word = next(token for token in range(4) if token != padding)
    tokens = torch.full((2, length), word)
    mask = torch.ones_like(tokens)
    mask[1, -2:] = 0
    tokens[mask == 0] = word if padding is None else padding
    return model(input_ids=tokens, attention_mask=mask, output_hidden_states=True)


# -- costs


def count_parameters(config: PreTrainedConfig) -> int:
    """Counts the parameters of an encoder, with embeddings and without a pooler."""
    with torch.device("meta"):
        return new_encoder(config).num_parameters()


def count_flops(config: PreTrainedConfig, batch_size: int, length: int) -> int:
    """Counts the floating-point operations of one forward pass (matrix products and attention)."""
    # Fake tensors on the meta device: on the CPU, fused attention is not counted; with real meta tensors, transformers
    # fails when it reads the mask's values. Fakes cannot be made in inference mode, in which a validation may ask.
    with torch.inference_mode(False), FakeTensorMode(allow_non_fake_inputs=True), torch.device("meta"):
        model = new_encoder(config).eval().requires_grad_(False)
        tokens = torch.zeros(batch_size, length, dtype=torch.long)
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    return counter.get_total_flops()
