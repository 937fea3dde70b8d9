"""How a process ends when a signal asks it to: in one line, and without leaving another process behind."""

from __future__ import annotations

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
"""The signals that ask a process to end, as a user knows them."""
GOES_ON = "the same command goes on"
IMPATIENCE = 2.0
"""Seconds after a signal in which more of them change nothing: who presses Ctrl-C twice means it once."""


class Ended(KeyboardInterrupt):
    """A signal asked this process to end. It is a KeyboardInterrupt, which libraries know how to clean up after.

    Its notes say what goes on without this process.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = signal.Signals(number)

    def __str__(self) -> str:
        return "; ".join([f"ended by {ASKING[self.number]}", *getattr(self, "__notes__", ()), GOES_ON])


_raised: list[float] = []
"""When a signal was listened to."""
_ends: list[Ended] = []
"""What this process ends by."""


def listen() -> None:
    """Has this process end by signals as this module says, from now on; what is ignored, as by nohup, stays ignored."""
    for number in ASKING:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, raise_ended)
    os.register_at_fork(after_in_child=_listen_no_more)
    sys.excepthook = _say
    atexit.register(_die)  # before any other is registered, so that it is the last to be called


def raise_ended(number: int, frame: FrameType | None = None) -> None:
    """Handles a signal that asks this process to end.

    Raises:
        Ended: unless that was raised a moment ago.
    """
    now = time.monotonic()
    if not _raised or now - _raised[-1] > IMPATIENCE:
        _raised.append(now)
        raise Ended(number)


def asked_to_end(error: BaseException) -> KeyboardInterrupt | None:
    """The signal behind an error, if there is one: Lightning turns a KeyboardInterrupt into a SystemExit."""
    while error.__context__ is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error if isinstance(error, KeyboardInterrupt) else None


@contextmanager
def shielding(*numbers: signal.Signals) -> Iterator[None]:
    """Keeps signals from the processes that are started in the block; for this one, they wait until its end.

    A terminal sends them to all of its processes: those that this one ends itself are not to die beforehand, each with
    a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Says in a line that a signal ended this process; of any other exception, what Python says."""
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
    _ends.append(error if isinstance(error, Ended) else Ended())
    logging.disable()  # the line is the last word
    if os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes that train together, the first
        with suppress(OSError, ValueError):  # the terminal is gone
            print("\n" * sys.stderr.isatty() + str(_ends[0]), file=sys.stderr, flush=True)


def _die() -> None:
    """Ends by the signal itself: the status is 128 + its number, and a shell's loop around this command ends too."""
    if _ends:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        signal.signal(_ends[0].number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
        os.kill(os.getpid(), _ends[0].number)


def _listen_no_more() -> None:
    """Leaves a forked child, as a data loader's worker is one, to its parent."""
    for number in ASKING:
        if signal.getsignal(number) is raise_ended:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)
