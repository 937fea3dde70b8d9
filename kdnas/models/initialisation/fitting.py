"""Closed forms that first weights are made of: principal directions, least squares, and a layer norm's two vectors."""

from typing import Any

import torch
from torch import Tensor, nn

RIDGE = 1e-3
"""The weight of the prior in a least-squares fit, relative to the mean square of an input."""


def principal_directions(moment: Tensor, width: int) -> Tensor:
    """Returns the leading eigenvectors of a (d, d) matrix of second moments, the largest first: (d, width).

    They are orthonormal. The entry of each with the largest magnitude is positive, which settles the signs.
    """
    vectors = torch.linalg.eigh(moment.double()).eigenvectors.flip(1)[:, :width]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return (vectors * largest.sign()).float()


def fit_linear(linear: nn.Linear, inputs: Tensor, targets: Tensor, ridge: float = RIDGE) -> None:
    """Fits a linear layer by least squares, in place, starting from the weights that it has.

    min over W, b of |X W^T + b - Y|^2 / n + ridge s |W - W_0|^2, where s is the mean variance of the inputs X, (n, in),
    Y are the targets, (n, out), and W_0 are the layer's own weights, which remain where X says nothing.
    """
    x, missing = inputs.double(), (targets - linear(inputs)).double()
    x_mean, missing_mean = x.mean(0), missing.mean(0)
    x, missing = x - x_mean, missing - missing_mean
    gram = x.T @ x
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    change = torch.linalg.solve(gram, x.T @ missing).T
    linear.weight.add_(change)
    linear.bias.add_(missing_mean - change @ x_mean)


def fit_norm(norm: nn.LayerNorm, inputs: Tensor, targets: Tensor) -> None:
    """Fits weight and bias of a layer norm by least squares, in place, each feature by itself: both (n, width)."""
    plain = nn.functional.layer_norm(inputs, norm.normalized_shape, eps=norm.eps)
    mean, target_mean = plain.mean(0), targets.mean(0)
    covariance = ((plain - mean) * (targets - target_mean)).mean(0)
    slope = covariance / (plain - mean).square().mean(0).clamp(min=torch.finfo(plain.dtype).tiny)
    norm.weight.copy_(slope)
    norm.bias.copy_(target_mean - slope * mean)
