"""Trains several students at the same time, each in a thread with its share of a CPU's cores.

The matrix products of a small student do not keep many cores busy, and much of its step runs on one core.
"""

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


class SideBySide:
    """A pool of threads that divide PyTorch's own; each works in a `context`, as autocast, set by thread."""

    def __init__(self, places: int, context: Callable[[], AbstractContextManager[None]]) -> None:
        cores, begun = torch.get_num_threads(), Barrier(places, timeout=START_S)
        self._context = context
        self._pool = ThreadPoolExecutor(places, "student", _take, (cores // places,))
        list(self._pool.map(lambda _: begun.wait(), range(places)))
        torch.set_num_threads(cores)  # the last number set is also that of threads still to come

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Returns the result of each item, in order, when all are done; or raises the first of their exceptions."""
        gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

        def apart(item: Item) -> Result:
            with torch.inference_mode(inference), torch.set_grad_enabled(gradients), self._context():
                return work(item)

        futures = [self._pool.submit(apart, item) for item in items]
        try:
            wait(futures)
        except BaseException:  # as from a signal: no thread may go on with a training that is given up
            for future in futures:
                future.cancel()
            wait(futures)
            raise
        return [future.result() for future in futures]


def _take(cores: int) -> None:
    torch.get_num_threads()  # a thread's first call sets its number to the last one set in any thread
    torch.set_num_threads(cores)


def places() -> int:
    """Returns the number of cores for students: PyTorch's threads, or fewer if the process is pinned to fewer cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(torch.get_num_threads(), cores)


def draws(model: nn.Module) -> bool:
    """Returns whether training a model draws random numbers (dropout), whose order would depend on the threads."""
    return any(isinstance(part, nn.Dropout) and part.p > 0 for part in model.modules())
