"""Whether other programs disturbed a measurement."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

SLACK = 1.1
"""How many times its processor time an inference may take that nothing disturbed."""
DAEMONS = 0.25
"""Processors that a quiet host's own services may use."""
WATCHED = 0.2
"""Seconds for which a host is watched at least: it counts processor time in hundredths of a second."""
STAT, CORES = Path("/proc/stat"), Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Timing:
    """One inference.

    Attributes:
        elapsed: milliseconds.
        worked: milliseconds by the accelerator's clock; those of several threads are added up.
        interrupted: whether the scheduler took a processor away from it.
    """

    elapsed: float
    worked: float
    interrupted: bool

    @property
    def undisturbed(self) -> bool:
        return not self.interrupted and self.elapsed <= SLACK * self.worked

    @property
    def own(self) -> float:
        """The milliseconds without those of waiting for a processor, as far as they are known."""
        return min(self.elapsed, self.worked)


def time_once(infer: Callable[[], object], clock: Callable[[], float]) -> Timing:
    """Times one inference by the wall and by the accelerator's clock."""
    interruptions = getrusage(RUSAGE_SELF).ru_nivcsw
    worked, start = clock(), time.perf_counter()
    infer()
    elapsed, worked = time.perf_counter() - start, clock() - worked
    return Timing(elapsed * 1e3, worked * 1e3, getrusage(RUSAGE_SELF).ru_nivcsw > interruptions)


class Others:
    """Watches what other programs use of the host's processors.

    A program that computes beside a measurement need not interrupt it to slow it down: two processors can be threads of
    one core. The system lets programs share a core when no other is free.

    Args:
        threads: of the measurement.
    """

    def __init__(self, threads: int) -> None:
        self.allowed = DAEMONS + max(0, cores() - threads)
        self._start, self._used = time.perf_counter(), used_by_others()

    def disturb(self) -> bool:
        """Whether they have used more than a measurement can bear."""
        time.sleep(max(0.0, WATCHED - (time.perf_counter() - self._start)))
        used, seconds = used_by_others() - self._used, time.perf_counter() - self._start
        return used > self.allowed * seconds


def cores() -> int:
    """The host's cores; of those that have two threads, each is one."""
    siblings = {path.read_text() for path in CORES.glob("cpu[0-9]*/topology/thread_siblings_list")}
    return len(siblings) or os.cpu_count() or 1


def used_by_others() -> float:
    """Seconds of processor time that the host has spent on other processes; falls behind where it does not say."""
    try:
        user, nice, system, _, _, *interrupts = map(int, STAT.read_text().split("\n", 1)[0].split()[1:9])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK") - time.process_time()
