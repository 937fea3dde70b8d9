"""Distillation losses: pure functions of tensors."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def hidden_state_mse(projected: Tensor, target: Tensor, variance: Tensor | float = 1.0) -> Tensor:
    """MSE(H_i^S W_i^j, H_j^T) / variance, the mean over tokens and features: a pair's term of KD-NAS v2, Eq. 1.

    Eq. 1 prints H_j^S for H_i^S. With the variance of the teacher layer, 1 - loss is the explained variance.
    Student states are in the teacher's width, and both of real tokens only, (tokens, d_T).
    """
    return mean_square(projected - target) / variance


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


def representation_kl(projected: Tensor, target: Tensor) -> Tensor:
    """KL(softmax(z_T) || softmax(R(z_S))) over the features, (tokens, d_T), mean over tokens: KD-NAS v1, Eq. 1."""
    student, teacher = (functional.log_softmax(states.float(), dim=-1) for states in (projected, target))
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """1/2 ||logits_S - logits_T||^2 of logits, (rows, classes), the mean over rows: KD-NAS v1, Eq. 2."""
    return 0.5 * (student.float() - teacher.float()).square().sum(-1).mean()
