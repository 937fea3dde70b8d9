"""Builds models, with random or with stored weights, and reports the tensors that do not fit."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from kdnas.base.errors import ConfigError

DATA: dict[str, Any] = {"trust_remote_code": False}
"""Arguments of every `from_pretrained`: code that comes with a model is never run, and the user is never asked."""
WEIGHTS = DATA | {"weights_only": True, "dtype": torch.float32}
"""Arguments for loading weights: of a pickle, only tensors; in fp32."""
POSITIONS = ("position_ids", "token_type_ids")
"""Buffers that older versions of transformers saved beside the weights."""


def make(auto: Any, config: PreTrainedConfig) -> PreTrainedModel:
    """Builds a model by one of transformers' Auto classes with random weights, in fp32 whatever type the config has."""
    return auto.from_config(config, dtype=torch.float32)


def new_encoder(config: PreTrainedConfig, seed: int | None = None) -> PreTrainedModel:
    """Builds an encoder without a pooler. With a seed, the state of the global generators is restored."""
    if seed is None:
        return without_pooler(make(AutoModel, config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return without_pooler(make(AutoModel, config))


def without_pooler(model: PreTrainedModel) -> PreTrainedModel:
    """Removes an encoder's pooler: no objective here trains it, and exports hold trained weights only."""
    if hasattr(model, "pooler"):
        setattr(model, "pooler", None)  # noqa: B010 - a module's own assignment takes only tensors and modules
    return model


def from_folder(auto: Any, source: str, config: PreTrainedConfig) -> tuple[PreTrainedModel, list[str]]:
    """Loads a model by one of the Auto classes from a folder or hub id; also returns the names that do not fit."""
    model, report = auto.from_pretrained(
        source, config=config, ignore_mismatched_sizes=True, output_loading_info=True, **WEIGHTS
    )
    mismatched = [entry[0] if isinstance(entry, tuple) else entry for entry in report["mismatched_keys"]]
    wrong = [*mismatched, *report["missing_keys"], *report["unexpected_keys"]]
    return model, [name for name in wrong if not name.endswith(POSITIONS)]


def fill(model: PreTrainedModel, weights: dict[str, Tensor]) -> list[str]:
    """Copies weights into a model, and returns the model's names that do not fit; either may be an encoder alone."""
    encoder = f"{model.base_model_prefix}."
    whole, bare = any(name.startswith(encoder) for name in weights), model.base_model is model
    if bare and whole:
        named = {name.removeprefix(encoder): value for name, value in weights.items() if name.startswith(encoder)}
    elif bare or whole:
        named = weights
    else:
        named = {f"{encoder}{name}": value for name, value in weights.items()}
    current = model.state_dict()
    fitting = {name: value for name, value in named.items() if name in current and current[name].shape == value.shape}
    model.load_state_dict(fitting, strict=False)
    return sorted((current.keys() | named.keys()) - fitting.keys())


def check_encoder(model: PreTrainedModel, wrong: Iterable[str], source: str) -> None:
    """Refuses weights of an encoder that are not finite or do not fit (`wrong`); heads and poolers are not checked."""
    encoder = f"{model.base_model_prefix}."
    parts = tuple(f"{name}." for name, _ in model.base_model.named_children() if name != "pooler")
    # Transformers reports missing keys by the model's names, and unexpected keys by the file's.
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
