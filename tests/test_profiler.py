"""Where the time goes, by a clock that is moved by hand."""

import pandas as pd
import pytest

from kdnas.base import profiler
from kdnas.base.profiler import REST, TimeTable


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def __call__(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(profiler.time, "perf_counter", clock)
    return clock


def test_each_part_is_without_what_is_a_part_of_its_own(clock, tmp_path):
    table = TimeTable()
    clock.now += 1  # before the first part: not counted
    with table.profile("run_training_epoch"):  # Lightning's, of no part
        clock.now += 2
        with table.profile("[Strategy]SingleDeviceStrategy.training_step"):
            clock.now += 4
            with table.profile("ask teacher"):
                clock.now += 8
                with table.profile("something within"):
                    clock.now += 16
            clock.now += 32
        with table.profile("optimizer_step"):
            clock.now += 64
    said = table.write(tmp_path / "profile.csv")
    found = pd.read_csv(tmp_path / "profile.csv").set_index("part")
    expected = {"asking the teacher": 24, "students: forward": 36, "optimizer": 64, REST: 2, "all": 126}
    assert found["seconds"].to_dict() == expected
    assert found["share"].to_dict() == pytest.approx({part: seconds / 126 for part, seconds in expected.items()})
    assert all(part in said for part in expected)


def test_what_an_exception_leaves_open_is_closed(clock):
    table = TimeTable()
    table.start("[Strategy]SingleDeviceStrategy.training_step")
    table.start("backward")
    clock.now += 1
    table.stop("[Strategy]SingleDeviceStrategy.training_step")  # as `backward` raised
    clock.now += 2
    found = table.table().set_index("part")["seconds"].to_dict()
    assert found == {"students: forward": 0, "students: backward": 1, REST: 2, "all": 3}
