"""Builds models with random weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel


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
    """Removes an encoder's pooler: no objective here trains it, and exports hold trained weights only."""
    if hasattr(model, "pooler"):
        setattr(model, "pooler", None)  # noqa: B010 - a module's own assignment takes only tensors and modules
    return model
