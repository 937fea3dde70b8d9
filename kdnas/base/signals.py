"""Ends a process on SIGINT, SIGTERM or SIGHUP: with one line on stderr, and with no process left behind."""

import atexit
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType

ASKING = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP (its terminal was closed)"}
"""The signals that end a process, by the names that messages use."""
GOES_ON = "run the same command again to continue"
IMPATIENCE = 2.0
"""Seconds after a signal in which further ones are ignored, as a second Ctrl-C."""


class Ended(KeyboardInterrupt):
    """A signal ended this process: an interrupt, which libraries clean up after. Its notes name jobs that go on."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = signal.Signals(number)

    def __str__(self) -> str:
        return "; ".join([f"ended by {ASKING[self.number]}", *getattr(self, "__notes__", ()), GOES_ON])


_raised: list[float] = []
"""The times at which a signal raised `Ended`."""
_ends: list[Ended] = []
"""The signal that ends this process, once there is one."""


def listen() -> None:
    """Installs the signal handlers of this module; signals that are ignored, as by nohup, stay ignored."""
    for number in ASKING:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, raise_ended)
    os.register_at_fork(after_in_child=_listen_no_more)
    sys.excepthook = _say
    atexit.register(_die)  # registered first, so that it is called last


def raise_ended(number: int, frame: FrameType | None = None) -> None:
    """Handles a signal: raises `Ended`, unless it was raised within the last `IMPATIENCE` seconds."""
    now = time.monotonic()
    if not _raised or now - _raised[-1] > IMPATIENCE:
        _raised.append(now)
        raise Ended(number)


def asked_to_end(error: BaseException) -> KeyboardInterrupt | None:
    """Returns the KeyboardInterrupt behind an error, if any: Lightning turns one into a SystemExit."""
    while error.__context__ is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error if isinstance(error, KeyboardInterrupt) else None


@contextmanager
def shielding(*numbers: signal.Signals) -> Iterator[None]:
    """Blocks signals for the processes that are started in the block; this process gets them when the block ends.

    A terminal sends its signals to all of its processes. Without this, the child processes, which this process ends
    itself, would die before, each with a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints a line if a signal ended this process, and Python's traceback for any other exception."""
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
    _ends.append(error if isinstance(error, Ended) else Ended())
    logging.disable()  # nothing is logged after the line
    if os.environ.get("LOCAL_RANK", "0") == "0":  # only the first of the processes of a DDP training
        with suppress(OSError, ValueError):  # the terminal was closed
            print("\n" * sys.stderr.isatty() + str(_ends[0]), file=sys.stderr, flush=True)


def _die() -> None:
    """Ends this process by the signal itself: its status is 128 + the number, and a shell loop around it ends too."""
    if _ends:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        signal.signal(_ends[0].number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
        os.kill(os.getpid(), _ends[0].number)


def _listen_no_more() -> None:
    """Restores the default handlers in a forked child, as a data loader's worker: its parent ends it."""
    for number in ASKING:
        if signal.getsignal(number) is raise_ended:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)
