"""The optimizer and schedule that every training here shares."""

from __future__ import annotations

import torch
from torch import nn


def adamw(
    module: nn.Module, learning_rate: float, betas: tuple[float, float], weight_decay: float, precision: str
) -> torch.optim.AdamW:
    """AdamW; biases and layer norms are not decayed.

    Args:
        precision: the Trainer's. The fused step is several times faster, but under fp16 it would hide the unscaled
            gradients from clipping.
    """
    parameters = list(module.parameters())
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(betas[0], betas[1]), fused=precision != "16-mixed")


def linear(progress: float, warmup: float) -> float:
    """The learning rate's share of its peak: a linear rise over the share `warmup`, then a linear fall to zero.

    Args:
        progress: of the training, from 0 to 1.
    """
    if progress < warmup:
        return progress / warmup
    return (1 - progress) / (1 - warmup) if progress < 1 else 0.0
