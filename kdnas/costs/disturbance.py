"""Detects whether other programs disturbed a measurement."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

SLACK = 1.1  # the largest ratio of elapsed time to processor time of an undisturbed inference
SERVICES = 0.25  # the number of processors that the services of a quiet host may use
SHORTEST = 0.2  # the fewest seconds to watch a host for: it counts processor time in hundredths of a second
STAT, CORES = Path("/proc/stat"), Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Timing:
    """The times of one inference, in milliseconds."""

    elapsed: float
    worked: float  # the time by the device's clock, which on a CPU is processor time, summed over threads
    interrupted: bool  # whether the scheduler preempted the inference

    @property
    def undisturbed(self) -> bool:
        """Whether the inference had a processor all the time."""
        return not self.interrupted and self.elapsed <= SLACK * self.worked

    @property
    def own(self) -> float:
        """The milliseconds without the wait for a processor, as far as it is known."""
        return min(self.elapsed, self.worked)


def time_once(infer: Callable[[], object], clock: Callable[[], float]) -> Timing:
    """Times one inference by the wall clock and by the device's clock."""
    interruptions = getrusage(RUSAGE_SELF).ru_nivcsw
    worked, start = clock(), time.perf_counter()
    infer()
    elapsed, worked = time.perf_counter() - start, clock() - worked
    return Timing(elapsed * 1e3, worked * 1e3, getrusage(RUSAGE_SELF).ru_nivcsw > interruptions)


class OtherPrograms:
    """Watches how much other programs use the host's processors.

    A program that runs beside a measurement can slow it down without interrupting it: two processors can be threads of
    one core. The system lets programs share a core when no other core is free. The measurement has `threads` threads.
    """

    def __init__(self, threads: int) -> None:
        self.allowed = SERVICES + max(0, cores() - threads)
        self._start, self._used = time.perf_counter(), time_of_other_programs()

    def disturb(self) -> bool:
        """Returns whether other programs have used more processor time than an undisturbed measurement allows."""
        time.sleep(max(0.0, SHORTEST - (time.perf_counter() - self._start)))
        used, seconds = time_of_other_programs() - self._used, time.perf_counter() - self._start
        return used > self.allowed * seconds


def cores() -> int:
    """Returns the number of physical cores of the host."""
    siblings = {path.read_text() for path in CORES.glob("cpu[0-9]*/topology/thread_siblings_list")}
    return len(siblings) or os.cpu_count() or 1


def time_of_other_programs() -> float:
    """Returns the seconds of processor time that other processes have used; 0 where the system does not count it."""
    try:
        user, nice, system, _, _, *interrupts = map(int, STAT.read_text().split("\n", 1)[0].split()[1:9])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK") - time.process_time()


def load() -> float:
    """Returns the host's load average of the last minute."""
    return os.getloadavg()[0]
