"""Students in threads of their own."""

import os
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from threading import Barrier, current_thread

import pytest
import torch
from test_distiller import SMALL, WIDE, Texts, distiller, trainer

from kdnas.training import gang as gangs
from kdnas.training import student_threads as side_by_side
from kdnas.training.student_threads import SideBySide, draws, places

STATES = (
    torch.is_grad_enabled,
    torch.is_inference_mode_enabled,
    lambda: torch.is_autocast_enabled("cpu"),
    torch.get_num_threads,
)


@pytest.fixture
def four_threads():
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(1)


def bf16():
    return torch.autocast("cpu", torch.bfloat16)


def test_work_is_done_at_the_same_time_and_comes_back_in_order(four_threads):
    together = Barrier(2)  # that one alone would never pass

    def work(item):
        together.wait(timeout=60)
        return item, current_thread()

    results = SideBySide(2, bf16).map(work, range(6))
    assert [item for item, _ in results] == list(range(6))
    assert len({thread for _, thread in results}) == 2


def test_threads_have_their_share_of_the_cores_and_what_pytorch_knows_by_thread(four_threads):
    threads, together = SideBySide(2, bf16), Barrier(2)

    def states(_=None):
        together.wait(timeout=60)
        return [state() for state in STATES]

    assert threads.map(states, range(2)) == [[True, False, True, 2]] * 2
    with torch.no_grad():
        assert threads.map(states, range(2)) == [[False, False, True, 2]] * 2
    with torch.inference_mode():
        assert threads.map(states, range(2)) == [[False, True, True, 2]] * 2
    with ThreadPoolExecutor(1) as later:
        assert torch.get_num_threads() == later.submit(torch.get_num_threads).result() == 4


def test_an_error_is_raised_when_nobody_works_any_more(four_threads):
    done = []

    def work(item):
        if item == 0:
            raise ValueError("the first")
        time.sleep(0.2)
        done.append(item)

    with pytest.raises(ValueError, match="the first"):
        SideBySide(2, bf16).map(work, range(3))
    assert sorted(done) == [1, 2]


def test_a_signal_leaves_nobody_at_work(four_threads, monkeypatch):
    """Ctrl-C while two of six students work: the others do not begin."""
    done, begun = [], Barrier(3)

    def work(item):
        if item < 2:
            begun.wait(timeout=60)
        time.sleep(0.2)
        done.append(item)

    waits = iter([True, False])

    def interrupted(futures):
        if next(waits):
            begun.wait(timeout=60)
            raise KeyboardInterrupt
        return wait(futures)

    monkeypatch.setattr(side_by_side, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SideBySide(2, bf16).map(work, range(6))
    assert sorted(done) == [0, 1]


def test_a_thread_that_is_pinned_has_no_room_for_others(four_threads):
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert places() == 1
    finally:
        os.sched_setaffinity(0, cores)
    assert places() == min(4, len(cores))


@pytest.mark.parametrize(("settings", "threads"), [({}, 2), ({"dropout": 0.1}, None), ({"compile": True}, None)])
def test_who_works_side_by_side(teacher, four_threads, monkeypatch, settings, threads):
    """With dropout each would get random numbers in the order in which they come; compiling is not for threads."""
    monkeypatch.setattr(gangs, "places", lambda: 4)
    gang = distiller(teacher, SMALL, WIDE, **settings).gang
    gang.share_cores(torch.device("cpu"), nullcontext)
    assert (gang.threads and gang.threads._pool._max_workers) == threads
    assert draws(gang.students[0].model) == ("dropout" in settings)


def test_a_gang_with_dropout_can_be_repeated(teacher, four_threads):
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        gang = distiller(teacher, SMALL, WIDE, dropout=0.3)
        trainer().fit(gang, datamodule=Texts(teacher))
        results.append(gang.results)
    assert results[0] == results[1]


def test_autocast_reaches_the_threads(teacher, four_threads):
    dtypes = set()
    gang = distiller(teacher, SMALL, WIDE)
    for student in gang.students:
        student.model.encoder.layer[0].output.dense.register_forward_hook(lambda _, __, out: dtypes.add(out.dtype))
    trainer(precision="bf16-mixed").fit(gang, datamodule=Texts(teacher))
    assert dtypes == {torch.bfloat16}
