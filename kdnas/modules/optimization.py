"""The optimizer and schedule that every training here shares."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import get_linear_schedule_with_warmup


def adamw(
    module: nn.Module, learning_rate: float, betas: tuple[float, float], weight_decay: float, precision: str
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; biases and layer norms are not decayed.

    Args:
        precision: the Trainer's. The fused step is several times faster, but under fp16 it would hide the unscaled
            gradients from clipping.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trainable if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trainable if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(betas[0], betas[1]), fused=precision != "16-mixed")


def linear_schedule(optimizer: torch.optim.Optimizer, warmup: float, steps: int) -> dict[str, Any]:
    """What `configure_optimizers` returns: a linear rise over `warmup * steps`, then a linear fall to zero."""
    schedule = get_linear_schedule_with_warmup(optimizer, round(warmup * steps), steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
