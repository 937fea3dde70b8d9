"""Gradients of several students, each when its own loss is there, as far as the memory goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def at_once(loss: Tensor, parameters: Sequence[nn.Parameter], scale: float = 1.0) -> Tensor:
    """Computes a loss's gradients now, for `backward` to hand out later, so that what led to the loss can be freed.

    Students that share a batch then need memory for the activations of those that are at work, and not of all.

    Args:
        loss: a scalar.
        parameters: that it depends on, or some of them; frozen ones are passed over.
        scale: what the gradients are multiplied by. It takes the place of the gradient that `backward` would bring:
            the result may only be added to others and, by Lightning, divided.

    Returns:
        A scalar equal to the loss.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    if scale != 1.0:
        gradients = tuple(None if gradient is None else gradient * scale for gradient in gradients)
    return _Computed.apply(loss.detach(), list(gradients), *trained)


class _Computed(torch.autograd.Function):
    """A scalar whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, _: Any) -> Any:
        gradients, ctx.gradients = ctx.gradients, None
        return None, None, *gradients


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an accelerator or the host had no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
