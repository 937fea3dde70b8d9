"""A GPU for each process of a host."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import IO

from kdnas.locks import free


def take_gpu(slots: Path, gpus: list[str]) -> None:
    """Shows this process one GPU only, for as long as it lives; it must not have looked at any before.

    Args:
        slots: a folder for the locks by which processes share them out.
        gpus: as CUDA_VISIBLE_DEVICES names them.
    """
    if HELD or not gpus:
        return
    slots.mkdir(parents=True, exist_ok=True)
    for slot in itertools.count():
        file = (slots / str(slot)).open("a")
        if free(file):
            HELD.append(file)
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
            return
        file.close()


HELD: list[IO[str]] = []
"""The lock on this process's slot."""


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(i) for i in range(torch.cuda.device_count())] if named is None else [n for n in named.split(",") if n]
