"""Assigns one GPU to each process of a host."""

import itertools
import os
from pathlib import Path
from typing import IO

from kdnas.base.locks import free

HELD: list[IO[str]] = []
"""The lock on this process's slot."""


def take_gpu(slots: Path, gpus: list[str]) -> None:
    """Sets CUDA_VISIBLE_DEVICES to a free GPU, by lock files in `slots`; this process has not initialised CUDA yet."""
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


def gpus() -> list[str]:
    """Returns the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(i) for i in range(torch.cuda.device_count())] if named is None else [n for n in named.split(",") if n]
