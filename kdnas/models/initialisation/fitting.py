"""Closed forms that first weights are made of: principal directions, least squares, a layer norm's two vectors."""

import torch
from torch import Tensor, nn
from torch.nn import functional

RIDGE = 0.03
"""The weight of the prior in a least-squares fit, relative to the mean variance of the inputs."""


def principal_directions(moment: Tensor, width: int) -> Tensor:
    """Returns the leading eigenvectors of a (d, d) matrix of second moments, the largest first: (d, width).

    They are orthonormal. The entry of each with the largest magnitude is positive, which settles the signs.
    """
    vectors = torch.linalg.eigh(moment.double()).eigenvectors.flip(1)[:, :width]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return (vectors * largest.sign()).float()


class LeastSquares:
    """Fits linear maps of common inputs, (n, in), in place; maps with a bias take inputs that are `centred`."""

    def __init__(self, inputs: Tensor, centred: bool = True, ridge: float = RIDGE) -> None:
        self.inputs = inputs
        self.mean = self.inputs.mean(0) * centred
        self.deviations = self.inputs - self.mean
        gram = self.deviations.T @ self.deviations
        gram.diagonal().add_(ridge * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny)
        self.factor = torch.linalg.cholesky(gram)

    def fit(self, weight: Tensor, bias: Tensor | None, targets: Tensor) -> None:
        """Fits a map that has the weights W_0, (out, in), to targets Y, (n, out).

        min over W and b of |X W^T + b - Y|^2 / n + ridge s |W - W_0|^2, where s is the mean square of the inputs X:
        W_0 remains where these say nothing.
        """
        missing = targets - self.inputs @ weight.T
        change = torch.cholesky_solve(self.deviations.T @ missing, self.factor).T
        weight.add_(change)
        if bias is not None:
            bias.copy_(missing.mean(0) - change @ self.mean)


def fit_norm(norm: nn.LayerNorm, inputs: Tensor, targets: Tensor) -> None:
    """Fits weight and bias of a layer norm by least squares, in place, each feature by itself: both (n, width)."""
    plain = functional.layer_norm(inputs, norm.normalized_shape, eps=norm.eps)
    deviation, mean = plain - plain.mean(0), targets.mean(0)
    square = deviation.square().mean(0)
    slope = torch.where(square > 0, (deviation * (targets - mean)).mean(0) / square, 0.0)
    norm.weight.copy_(slope)
    norm.bias.copy_(mean - slope * plain.mean(0))
