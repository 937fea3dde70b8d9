"""Distillation losses: pure functions of tensors."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def hidden_state_mse(projected: Tensor, target: Tensor, variance: Tensor | float = 1.0) -> Tensor:
    """MSE(H_i^S W_i^j, H_j^T) / variance: one pair's term of KD-NAS v2, Eq. 1.

    Eq. 1 prints H_j^S for H_i^S. With the variance of the teacher layer, 1 - loss is the explained variance.

    Args:
        projected: student states in the teacher's width, real tokens only, (tokens, d_T).
        target: teacher states, (tokens, d_T).
        variance: of the teacher layer, a scalar.

    Returns:
        A scalar: the mean over tokens and features.
    """
    return functional.mse_loss(projected.float(), target.float()) / variance
