"""Losses of attention maps and relations, which are dot products of the vectors of a row's tokens.

Maps are made run by run of rows of equal length: no map has padding, and none needs a mask. Each loss takes maps of
student and teacher, (rows, heads, length, length) each, and is a sum over tokens of the mean over heads.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kdnas.models.attention import within_window

RowsLoss = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""Computes a loss from vectors of student and teacher, (rows, heads, length, size) each; a sum over tokens."""
Map = Callable[[Tensor, int | None], Tensor]
"""Makes the maps of a layer from its scores, (rows, heads, length, length), and its window."""
LARGEST = {"cpu": 2**18, "cuda": 2**25}
"""The most entries of maps that are made at a time, by the type of device: few enough for a CPU's caches."""


def scores(one: Tensor, other: Tensor) -> Tensor:
    """Returns A B^T / sqrt(d) of vectors A and B, (rows, heads, length, d): (rows, heads, length, length)."""
    return (one * one.shape[-1] ** -0.5) @ other.transpose(-1, -2)


def near_scores(scores: Tensor, window: int | None) -> Tensor:
    """Returns scores, (rows, heads, length, length), with 0 where tokens are more than a layer's window apart."""
    return _near(scores, window, 0.0)


def near_probabilities(scores: Tensor, window: int | None) -> Tensor:
    """Returns the softmax of scores, (rows, heads, length, length), over the tokens within a layer's window."""
    return _near(scores, window, -torch.inf).softmax(-1)


def _near(scores: Tensor, window: int | None, far: float) -> Tensor:
    if window is None:
        return scores
    return scores.masked_fill(~within_window(scores.shape[-1], window, scores.device), far)


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(A_T) || softmax(A_S)) of scores A: the cross entropy of KD-NAS v2, Eq. 6, less the teacher's entropy.

    The gradients are those of the cross entropy, and 0 is the best value.
    """
    return _Kl.apply(student, teacher) / student.shape[1]


def probability_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """MSE(softmax(A_T), softmax(A_S)) of scores A: AutoDistil, Eq. 7."""
    return mse(student.softmax(-1), teacher.softmax(-1))


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """MSE(A_T, A_S): TinyBERT's loss of attention (Jiao et al., 2020, Eq. 7)."""
    return (student - teacher).square().sum() / (student.shape[1] * student.shape[-1])


class _Kl(torch.autograd.Function):
    """The sum of KL(P || Q), with P = softmax(A_T) and Q = softmax(A_S), in few passes: dKL / dA_S = Q - P."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        own, target = (functional.log_softmax(scores, dim=-1) for scores in (student, teacher))
        probabilities = target.exp()
        loss = torch.dot(probabilities.flatten(), target.sub_(own).flatten())
        ctx.save_for_backward(own.exp_().sub_(probabilities))
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (difference,) = ctx.saved_tensors
        return difference * gradient, None


def mean_over_tokens(
    loss: RowsLoss,
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    runs: Sequence[tuple[int, int]],
    layers: int = 1,
) -> Tensor:
    """Returns the mean over all tokens of a loss of rows.

    Gradients are computed with the loss, a few rows at a time, so that only the maps of these rows are in memory. In
    fp32 also for vectors in bf16: the products are small, and a softmax of scores in bf16 would be off by percents.

    Args:
        loss: see `RowsLoss`.
        student, teacher: the vectors of all tokens, (tokens, heads, size) each.
        runs: (rows, length) of each run of adjacent rows of equal length.
        layers: the number of pairs of layers whose maps the loss has in memory at a time.
    """
    return _AtOnce.apply(loss, teacher, runs, layers, *student)


class _AtOnce(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        loss: RowsLoss,
        teacher: Sequence[Tensor],
        runs: Sequence[tuple[int, int]],
        layers: int,
        *student: Tensor,
    ) -> Tensor:
        trained = any(ctx.needs_input_grad)
        wide = torch.promote_types(student[0].dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=student[0].device)
        gradients: list[Sequence[Tensor]] = []
        heads = max(values.shape[1] for values in (*student, *teacher))
        with torch.autocast(total.device.type, enabled=False), torch.set_grad_enabled(trained):
            largest = LARGEST.get(total.device.type, LARGEST["cuda"])
            for begin, rows, length in _parts(runs, heads * layers, largest):
                part = slice(begin, begin + rows * length)
                leaves = [values[part].detach().to(wide).requires_grad_(trained) for values in student]
                own, target = (
                    [each.unflatten(0, (rows, length)).transpose(1, 2) for each in values]
                    for values in (leaves, [values[part].to(wide) for values in teacher])
                )
                value = loss(own, target)
                total += value.detach()
                if trained:
                    gradients.append(torch.autograd.grad(value, leaves))
        ctx.save_for_backward(*(torch.cat(parts) for parts in zip(*gradients, strict=True)))
        ctx.dtypes = [values.dtype for values in student]
        ctx.tokens = len(student[0])
        return total / ctx.tokens

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        factor = gradient / ctx.tokens
        own = ((each * factor).to(dtype) for each, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True))
        return None, None, None, None, *own


def _parts(runs: Sequence[tuple[int, int]], maps: int, largest: int) -> Iterator[tuple[int, int, int]]:
    """Yields the first token, the number of rows and their length, of as many rows as are computed at a time.

    A row has `maps` maps, and those of all rows have `largest` entries at the most (one row is computed in any case).
    """
    begin = 0
    for rows, length in runs:
        most = max(1, largest // (maps * length**2))
        while rows > 0:
            count = min(most, rows)
            yield begin, count, length
            begin, rows = begin + count * length, rows - count
