"""Repeats an action in the background."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeating(action: Callable[[], None], every: float) -> Iterator[None]:
    """Calls an action after every `every` seconds, from a background thread, while the block runs."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(every):
            action()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
