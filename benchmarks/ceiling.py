"""The FLOPs of training a student, and the machine's rate of matrix products, which bounds its speed."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from transformers import PreTrainedConfig

TOKENS = (1024, 4096)
"""Rows of the products: a batch's real tokens, and with its padding."""
TRIALS, SECONDS = 5, 0.1
"""Each product is repeated for so long, so many times; the fastest counts."""


def training_flops(student: PreTrainedConfig, teacher_width: int, pairs: int, lengths: Sequence[int]) -> float:
    """Returns the FLOPs to train a student on one real token, projections included: three times the forward pass's.

    Only matrix products count, and only what cannot be avoided: no padding, and no teacher.

    Args:
        teacher_width: the teacher's hidden size, which the projections map to.
        pairs: the number of pairs of a student and a teacher layer; each has a projection.
        lengths: the number of tokens of each row; a token attends to all of its row.
    """
    width = student.hidden_size
    attended = sum(length**2 for length in lengths) / sum(lengths)
    layer = 4 * width**2 + 2 * width * student.intermediate_size + 2 * attended * width
    return 3 * 2 * (student.num_hidden_layers * layer + pairs * width * teacher_width)


def product_rate(student: PreTrainedConfig, teacher_width: int, device: torch.device, dtype: torch.dtype) -> float:
    """Returns the machine's best rate over the student's own matrix products, in FLOP/s."""
    width, inner = student.hidden_size, student.intermediate_size
    shapes = [(width, width), (width, inner), (inner, width), (width, teacher_width)]
    return max(_rate(m, k, n, device, dtype) for m in TOKENS for k, n in shapes)


def _rate(m: int, k: int, n: int, device: torch.device, dtype: torch.dtype) -> float:
    """Returns the rate of a product (m, k) x (k, n) in FLOP/s."""
    left, right = (torch.randn(*shape, device=device).to(dtype) for shape in ((m, k), (k, n)))
    out = left @ right
    seconds = _seconds(left, right, out, 3)
    count = math.ceil(SECONDS / seconds)
    return 2 * m * k * n / min(_seconds(left, right, out, count) for _ in range(TRIALS))


def _seconds(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor, count: int) -> float:
    """Returns the seconds of one product, the mean over `count`."""
    synchronise(left.device)
    started = time.perf_counter()
    for _ in range(count):
        torch.mm(left, right, out=out)
    synchronise(left.device)
    return (time.perf_counter() - started) / count


def synchronise(device: torch.device) -> None:
    """Waits until the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
