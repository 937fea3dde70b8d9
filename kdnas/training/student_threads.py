"""Several students at work at once, each on its share of a CPU's cores.

A small student's products do not keep many cores busy, and much of its step runs on one. Two students, apart, do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from threading import Barrier
from typing import TypeVar

import torch
from torch import nn

Item = TypeVar("Item")
Result = TypeVar("Result")
START_S = 60
"""Seconds that threads have to start."""


class SideBySide:
    """Threads that share out PyTorch's.

    Args:
        places: threads, no more than PyTorch has.
        context: what each piece of work is done in, such as autocast, which PyTorch knows by thread.
    """

    def __init__(self, places: int, context: Callable[[], AbstractContextManager[None]]) -> None:
        cores, begun = torch.get_num_threads(), Barrier(places, timeout=START_S)
        self._context = context
        self._pool = ThreadPoolExecutor(places, "student", _take, (cores // places,))
        list(self._pool.map(lambda _: begun.wait(), range(places)))
        torch.set_num_threads(cores)  # the last number set is also that of threads still to come

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """What comes of each item, in their order, when all are done.

        Raises:
            Exception: that of the first item that raised one.
        """
        gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

        def apart(item: Item) -> Result:
            with torch.inference_mode(inference), torch.set_grad_enabled(gradients), self._context():
                return work(item)

        futures = [self._pool.submit(apart, item) for item in items]
        try:
            wait(futures)
        except BaseException:  # a signal's: nobody is left at work on what is about to be given up
            for future in futures:
                future.cancel()
            wait(futures)
            raise
        return [future.result() for future in futures]


def _take(cores: int) -> None:
    """Gives this thread so many cores."""
    torch.get_num_threads()  # a thread's first question sets its number to the last that was set anywhere
    torch.set_num_threads(cores)


def places() -> int:
    """How many threads there is room for: those of PyTorch, or fewer where this thread is pinned, as they would be."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(torch.get_num_threads(), cores)


def draws(model: nn.Module) -> bool:
    """Whether training a model takes random numbers. Threads would get them in the order in which they come."""
    return any(isinstance(part, nn.Dropout) and part.p > 0 for part in model.modules())
