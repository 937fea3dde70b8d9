"""Finds the precision that a machine trains fastest in."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch

from kdnas.base.files import whole
from kdnas.base.host import QuietHost, host_folder
from kdnas.costs import ACCELERATORS, device_name

log = logging.getLogger(__name__)
WORTH = 1.2
"""The least speed-up at which bf16 is chosen: it costs a little accuracy."""
SIZES = (1024, 768, 768)
"""The sizes of a matrix product as in a student: tokens, hidden size, hidden size."""
TRIES = 10


def fastest_precision(accelerator: str) -> str:
    """Returns `bf16-mixed` where matrix products are faster in bf16, else `32-true`; measured once for each machine.

    Args:
        accelerator: cpu, cuda or mps.
    """
    known = host_folder() / "precision.json"
    key = f"{device_name(accelerator)}, torch {torch.__version__}"
    found = _read(known).get(key)
    if found is None:
        with QuietHost().quiet():
            found = _read(known).get(key) or speedup(accelerator)
            with whole(known) as aside:
                aside.write_text(json.dumps(_read(known) | {key: found}) + "\n")
        log.info("bf16 is %.1f times as fast as fp32 on %s", found, key)
    return "bf16-mixed" if found >= WORTH else "32-true"


def speedup(accelerator: str) -> float:
    """Returns the speed-up of a matrix product in bf16 over fp32; 0 where bf16 is not supported."""
    try:
        fp32, bf16 = (rate(accelerator, *SIZES, dtype) for dtype in (torch.float32, torch.bfloat16))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # bf16 is not supported
        return 0.0
    return bf16 / fp32


def rate(accelerator: str, rows: int, inner: int, columns: int, dtype: torch.dtype) -> float:
    """Returns the floating-point operations per second of a matrix product, the best of several attempts.

    On a CPU the seconds are processor time, so that other programs hardly change which of two precisions is faster.
    """
    synchronize, clock = ACCELERATORS[accelerator].synchronize, ACCELERATORS[accelerator].clock
    a = torch.ones(rows, inner, device=accelerator, dtype=dtype)
    b = torch.ones(inner, columns, device=accelerator, dtype=dtype)
    times = []
    for _ in range(TRIES):
        synchronize()
        start = clock()
        a @ b
        synchronize()
        times.append(clock() - start)
    return 2 * rows * inner * columns / min(times)


def _read(path: Path) -> dict[str, float]:
    """Reads the measured speed-ups by key; empty if the file does not exist or is damaged."""
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in known.items() if isinstance(value, float)} if isinstance(known, dict) else {}
