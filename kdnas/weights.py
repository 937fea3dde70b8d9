"""Weights put into models, and what of them does not fit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from kdnas.errors import ConfigError

DATA: dict[str, Any] = {"trust_remote_code": False}
"""How anything of a model is loaded: code that comes with it is not run, and nobody is asked whether it may be."""
WEIGHTS = DATA | {"weights_only": True, "dtype": torch.float32}
"""How weights are: of a pickle, tensors and nothing else."""
POSITIONS = ("position_ids", "token_type_ids")
"""Constants that older versions of transformers saved beside the weights."""


def from_folder(auto: Any, source: str, config: PreTrainedConfig) -> tuple[PreTrainedModel, list[str]]:
    """Makes a model of one of the Auto classes with a folder's or hub id's weights; names those that do not fit."""
    model, report = auto.from_pretrained(
        source, config=config, ignore_mismatched_sizes=True, output_loading_info=True, **WEIGHTS
    )
    mismatched = [entry[0] if isinstance(entry, tuple) else entry for entry in report["mismatched_keys"]]
    wrong = [*mismatched, *report["missing_keys"], *report["unexpected_keys"]]
    return model, [name for name in wrong if not name.endswith(POSITIONS)]


def fill(model: PreTrainedModel, weights: dict[str, Tensor]) -> list[str]:
    """Copies weights, of an encoder or of one with a head, into a model that is either; returns what did not fit.

    The names are the model's own.
    """
    encoder = f"{model.base_model_prefix}."
    whole, bare = any(name.startswith(encoder) for name in weights), model.base_model is model
    if bare and whole:
        named = {name.removeprefix(encoder): value for name, value in weights.items() if name.startswith(encoder)}
    elif bare or whole:
        named = weights
    else:
        named = {f"{encoder}{name}": value for name, value in weights.items()}
    own = model.state_dict()
    fitting = {name: value for name, value in named.items() if name in own and own[name].shape == value.shape}
    model.load_state_dict(fitting, strict=False)
    return sorted((own.keys() | named.keys()) - fitting.keys())


def check_encoder(model: PreTrainedModel, wrong: Iterable[str], source: str) -> None:
    """Refuses weights if any of the encoder's did not fit, or is no number; heads and poolers may be of any kind.

    Args:
        wrong: the names that did not fit.
        source: the setting to blame, with its value.

    Raises:
        ConfigError: there are such weights.
    """
    encoder = f"{model.base_model_prefix}."
    parts = tuple(f"{name}." for name, _ in model.base_model.named_children() if name != "pooler")
    # Transformers names what is missing as the model does, and what is left over as the file does.
    wrong = sorted({name for name in wrong if name.removeprefix(encoder).startswith(parts)})
    if wrong:
        raise ConfigError(
            f"{source}: its weights are of another architecture than its config "
            f"({len(wrong)} tensors do not fit, the first is {wrong[0]})"
        )
    check_finite(model, source)


def check_finite(model: PreTrainedModel, source: str) -> None:
    """Refuses weights that are NaN or infinite."""
    broken = next((name for name, weight in model.named_parameters() if not weight.isfinite().all()), None)
    if broken:
        raise ConfigError(f"{source}: its weights are not finite (NaN or infinite in {broken})")
