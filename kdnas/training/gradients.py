"""Computes the gradients of several students one by one, so that only one needs memory for activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def at_once(loss: Tensor, parameters: Sequence[nn.Parameter], scale: float = 1.0) -> Tensor:
    """Computes a loss's gradients now and stores them for `backward`, so that the activations can be freed.

    Args:
        loss: a scalar.
        parameters: parameters that the loss depends on; frozen ones get no gradient.
        scale: a factor for the gradients. It replaces the gradient that `backward` would pass on: the result may
            only be added to others and, by Lightning, divided.

    Returns:
        A scalar equal to the loss, whose `backward` adds the stored gradients to the parameters.
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
    """Returns whether an error means that an accelerator or the host had no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
