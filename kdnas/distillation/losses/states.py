"""Losses of hidden states: of a student, projected to the teacher's width, and of its teacher, (tokens, d_T) each."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def mse(projected: Tensor, target: Tensor) -> Tensor:
    """MSE(H_i^S W_i^j, H_j^T), the mean over tokens and features: a pair's term of KD-NAS v2, Eq. 1.

    Eq. 1 prints H_j^S for H_i^S. Divided by the variance of the teacher layer, 1 - loss is the explained variance.
    """
    return mean_square(projected - target)


def kl(projected: Tensor, target: Tensor) -> Tensor:
    """KL(softmax(z_T) || softmax(R(z_S))) over the features, the mean over tokens: KD-NAS v1, Eq. 1."""
    student, teacher = (functional.log_softmax(states.float(), dim=-1) for states in (projected, target))
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


def cosine(projected: Tensor, target: Tensor) -> Tensor:
    """1 - cos(H_S W, H_T), the mean over tokens: DistilBERT (Sanh et al., 2019, section 2)."""
    return 1 - functional.cosine_similarity(projected.float(), target.float(), dim=-1).mean()


def mean_square(difference: Tensor) -> Tensor:
    """Returns the mean of the squares of a difference, (tokens, width).

    Summed up in fp32, without an fp32 copy of a difference in bf16: a token's norm is rounded, by 2^-9 at most.
    """
    return _MeanSquare.apply(difference)


class _MeanSquare(torch.autograd.Function):
    """d mean(x^2) / dx = 2 x / n."""

    @staticmethod
    def forward(ctx: Any, difference: Tensor) -> Tensor:
        ctx.save_for_backward(difference)
        wide = torch.promote_types(difference.dtype, torch.float32)
        norms = torch.linalg.vector_norm(difference, dim=-1)  # with a `dtype` it would make a copy
        return norms.to(wide).square().sum() / difference.numel()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (difference,) = ctx.saved_tensors
        return difference * (2 * gradient / difference.numel()).to(difference.dtype)
