"""The optimizer and the learning rate schedule of every training."""

from typing import Any

import torch
from torch import nn

from kdnas.base.errors import is_number, require


def check_optimization(learning_rate: Any, warmup: Any, betas: Any, weight_decay: Any) -> None:
    rates = is_number(learning_rate) and learning_rate >= 0
    require(rates, "learning_rate", learning_rate, "a number from 0")
    require(is_number(warmup) and 0 <= warmup < 1, "warmup", warmup, "from 0 to below 1")
    pair = isinstance(betas, list | tuple) and len(betas) == 2
    require(
        pair and all(is_number(beta) and 0 <= beta < 1 for beta in betas),
        "betas",
        betas,
        "two numbers from 0 to below 1",
    )
    require(is_number(weight_decay) and weight_decay >= 0, "weight_decay", weight_decay, "a number from 0")


def adamw(
    module: nn.Module, learning_rate: float, betas: tuple[float, float], weight_decay: float, precision: str
) -> torch.optim.AdamW:
    """Makes AdamW with the fused step; biases and layer norms have no weight decay.

    In fp16 (`precision`, the Trainer's) the step is not fused, as it would hide the unscaled gradients from clipping.
    """
    parameters = list(module.parameters())
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(betas[0], betas[1]), fused=precision != "16-mixed")


def linear(progress: float, warmup: float) -> float:
    """Returns the share of the peak learning rate: it rises linearly in the warm-up, then falls linearly to zero."""
    if progress < warmup:
        return progress / warmup
    return (1 - progress) / (1 - warmup) if progress < 1 else 0.0
