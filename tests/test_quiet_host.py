"""The lock that keeps training steps out of latency measurements, between processes."""

import multiprocessing
import os
import signal
import threading
import time

import pytest

from kdnas.base.host import QuietHost

processes = multiprocessing.get_context("fork")
LONG = 60
"""Seconds after which a process that should have got somewhere is stuck."""


def start(target, *arguments):
    process = processes.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def end(*started):
    for process in started:
        process.join(LONG)
        assert process.exitcode == 0


def mark(file, begin):
    file.write(f"{begin} {time.monotonic()}\n")
    file.flush()


def hold(how, path, times, stop):
    """Takes and releases the lock at least `times` times, and writes down when it was held."""
    lock = getattr(QuietHost(), how)
    with path.open("w") as file:
        while times > 0 or not stop.is_set():
            with lock():
                begin = time.monotonic()
                time.sleep(0.003)
                mark(file, begin)
            times -= 1


def intervals(path):
    return [tuple(map(float, line.split())) for line in path.read_text().splitlines()]


def test_training_steps_and_measurements_never_overlap(tmp_path):
    """Two processes train without a pause, so that there is nearly always a step under way."""
    stop, paths = processes.Event(), {name: tmp_path / name for name in ("busy1", "busy2", "quiet1", "quiet2")}
    training = [start(hold, "busy", paths[name], 20, stop) for name in ("busy1", "busy2")]
    done = processes.Event()
    done.set()
    measuring = [start(hold, "quiet", paths[name], 10, done) for name in ("quiet1", "quiet2")]
    end(*measuring)  # measurements get their turn
    stop.set()
    end(*training)
    busy = intervals(paths["busy1"]) + intervals(paths["busy2"])
    quiet = [intervals(paths["quiet1"]), intervals(paths["quiet2"])]
    assert len(busy) >= 40 and [len(own) for own in quiet] == [10, 10]
    for other, own in ((busy, quiet[0] + quiet[1]), (quiet[0], quiet[1])):
        overlaps = [(a, b) for a in other for b in own if a[0] < b[1] and b[0] < a[1]]
        assert overlaps == []


def test_training_steps_of_two_processes_overlap():
    inside, leave = processes.Barrier(2), processes.Event()

    def train():
        with QuietHost().busy():
            inside.wait(LONG)  # broken, and an error, unless both are in
            leave.wait(LONG)

    training = [start(train), start(train)]
    leave.set()
    end(*training)


@pytest.mark.parametrize("how", ["busy", "quiet"])
def test_a_killed_process_leaves_no_lock_behind(how):
    inside, got = processes.Event(), processes.Event()

    def stay():
        with getattr(QuietHost(), how)():
            inside.set()
            time.sleep(10 * LONG)

    def measure():
        with QuietHost().quiet():
            got.set()

    holder = start(stay)
    assert inside.wait(LONG)
    waiting = start(measure)
    assert not got.wait(0.2)  # it is kept out while the holder lives
    os.kill(holder.pid, signal.SIGKILL)
    assert got.wait(LONG)
    end(waiting)
    holder.join(LONG)


def test_a_step_can_find_out_whether_a_measurement_is_waiting():
    host, step, asked = QuietHost(), processes.Event(), False

    def measure():
        step.wait()
        with QuietHost().quiet():
            pass

    waiting = start(measure)  # before the step: a process forked inside it would inherit its lock
    with host.busy():
        assert not host.wanted()
        step.set()
        while waiting.is_alive() and not asked:
            time.sleep(0.01)
            asked = host.wanted()
    end(waiting)
    assert asked and not host.wanted()


def test_a_long_wait_is_logged(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("kdnas.base.locks.PATIENCE", 0.01)
    entered = threading.Event()

    def step():
        with QuietHost(tmp_path).busy():
            entered.set()

    with caplog.at_level("INFO"), QuietHost(tmp_path).quiet():
        thread = threading.Thread(target=step)
        thread.start()
        while "waiting for process" not in caplog.text:
            assert thread.is_alive()
        assert not entered.is_set()
    thread.join()
    assert entered.is_set()


def test_an_error_releases_the_lock():
    for how in ("busy", "quiet"):
        with pytest.raises(ZeroDivisionError), getattr(QuietHost(), how)():
            raise ZeroDivisionError
    got = processes.Event()

    def measure():
        with QuietHost().quiet():
            got.set()

    end(start(measure))
    assert got.is_set()
