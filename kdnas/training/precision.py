"""The choice of a training's precision (`trainer.precision=auto`): the one that the machine is faster in."""

import json
import logging
from pathlib import Path

import torch

from kdnas.base.files import whole
from kdnas.base.host import QuietHost, host_folder
from kdnas.costs.devices import DEVICES, device_name

log = logging.getLogger(__name__)
WORTH = 1.2
"""The smallest speed-up for which bf16 is chosen: it costs a little accuracy."""
SIZES = (1024, 768, 768)
"""The sizes of a matrix product as in a student: tokens, hidden size, hidden size."""
ATTEMPTS = 10
"""The number of times that a matrix product is timed; the fastest counts."""


def fastest_precision(device: str) -> str:
    """Returns `bf16-mixed` where matrix products are faster in bf16 on a device (cpu, cuda or mps), else `32-true`.

    The speed-up is measured once for each device and version of torch, and stored in the host's folder.
    """
    path = host_folder() / "precision.json"
    key = f"{device_name(device)}, torch {torch.__version__}"
    found = _read(path).get(key)
    if found is None:
        with QuietHost().quiet():
            found = _read(path).get(key) or speedup(device)  # another process may have measured it meanwhile
            with whole(path) as new:
                new.write_text(json.dumps(_read(path) | {key: found}) + "\n")
        log.info("bf16 is %.1f times as fast as fp32 on %s", found, key)
    return "bf16-mixed" if found >= WORTH else "32-true"


def speedup(device: str) -> float:
    """Returns the speed-up of a matrix product in bf16 over fp32; 0 where bf16 is not supported."""
    try:
        fp32, bf16 = (rate(device, *SIZES, dtype) for dtype in (torch.float32, torch.bfloat16))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # bf16 is not supported
        return 0.0
    return bf16 / fp32


def rate(device: str, rows: int, inner: int, columns: int, dtype: torch.dtype) -> float:
    """Returns the floating-point operations per second of a product (rows, inner) x (inner, columns), at best.

    On a CPU the seconds are processor time, so that other programs hardly change which of two precisions is faster.
    """
    synchronize, clock = DEVICES[device].synchronize, DEVICES[device].clock
    a = torch.ones(rows, inner, device=device, dtype=dtype)
    b = torch.ones(inner, columns, device=device, dtype=dtype)
    seconds = []
    for _ in range(ATTEMPTS):
        synchronize()
        start = clock()
        a @ b
        synchronize()
        seconds.append(clock() - start)
    return 2 * rows * inner * columns / min(seconds)


def _read(path: Path) -> dict[str, float]:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in known.items() if isinstance(value, float)} if isinstance(known, dict) else {}
