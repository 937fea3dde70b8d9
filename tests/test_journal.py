"""The study's file: nothing lost or doubled by many writers, by a write cut short, or by a process that died."""

from multiprocessing import get_context

import pytest
from optuna.trial import TrialState

from kdnas.base.errors import ConfigError
from kdnas.costs.cost import Cost, Latency
from kdnas.models.architecture import Architecture
from kdnas.search.journal import JOURNAL, open_storage
from kdnas.search.study import Study

Process = get_context("fork").Process
COST = Cost(10, 20, {"cpu": Latency(1.0, 0.1)})


def filled(folder, trials):
    study = Study(open_storage(folder))
    for number in range(trials):
        study.add(Architecture(1 + number, 2, 8, 16, "gelu"), {"episode": 0, "origin": "random"})
    return study


@pytest.mark.long
def test_eight_processes_tell_a_thousand_observations_at_once(tmp_path):
    def tell(own):
        study = Study(open_storage(tmp_path))
        for number in own:
            study.tell(number, number / 7, {"loss": number / 3}, Cost(number, 1, {"cpu": Latency(1.0, 0.1)}))

    filled(tmp_path, 1000)
    running = [Process(target=tell, args=[range(i * 125, (i + 1) * 125)]) for i in range(8)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0] * 8
    seen = Study(open_storage(tmp_path)).observations
    assert [one.trial for one in seen] == list(range(1000))
    for one in seen:
        assert (one.reward, one.metrics, one.cost.parameters) == (one.trial / 7, {"loss": one.trial / 3}, one.trial)


def test_the_first_to_tell_is_believed(tmp_path):
    study = filled(tmp_path, 1)
    study.tell(0, 1.0, {"loss": 0.5}, COST)
    again = Study(open_storage(tmp_path))
    again.tell(0, 2.0, {"loss": 0.1}, COST)
    again.fail(0, "an orphan that came late")
    (seen,) = Study(open_storage(tmp_path)).observations
    assert (seen.reward, seen.metrics) == (1.0, {"loss": 0.5})


def test_a_journal_cut_at_every_byte_of_its_last_record_opens_and_goes_on(tmp_path):
    study = filled(tmp_path, 3)
    study.tell(0, 1.0, {"loss": 0.5}, COST)
    study.tell(1, 2.0, {"loss": 0.25}, COST)
    whole = (tmp_path / JOURNAL).read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(last, len(whole)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / JOURNAL).write_bytes(whole[:cut])
        study = Study(open_storage(folder))
        assert [seen.trial for seen in study.observations] == [0]
        study.tell(1, 2.0, {"loss": 0.25}, COST)
        study.tell(2, 3.0, {"loss": 0.125}, COST)
        assert [seen.reward for seen in Study(open_storage(folder)).observations] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("damage", [b"\0\0\0\0", b'{"op_code": 4}\n', b"[]\n", b"\xff\xfe{\n"])
def test_a_journal_damaged_in_the_middle_is_refused_in_one_line(damage, tmp_path):
    filled(tmp_path, 3)
    lines = (tmp_path / JOURNAL).read_bytes().splitlines(keepends=True)
    content = b"".join([*lines[:-1], damage, lines[-1]])
    (tmp_path / JOURNAL).write_bytes(content)
    with pytest.raises(ConfigError, match=f"search.dir={tmp_path}: {JOURNAL} is damaged") as refused:
        Study(open_storage(tmp_path))
    assert "\n" not in str(refused.value)
    assert (tmp_path / JOURNAL).read_bytes() == content


def test_a_gang_of_which_one_was_told_keeps_all_its_members(tmp_path):
    study = Study(open_storage(tmp_path))
    for number in range(5):
        attributes = {"episode": 0, "origin": "random", "gang": 2}
        study.add(Architecture(1 + number, 2, 8, 16, "gelu"), attributes)
    study.tell(0, 1.0, {"loss": 0.5}, COST)
    study.tell(2, 1.0, {"loss": 0.5}, COST)
    study.fail(3, "why not")
    assert [job.trials for job in study.jobs()] == [(0, 1), (4,)]
    study.split([0, 1])
    assert [job.trials for job in study.jobs()] == [(1,), (4,)]
    assert study.trials()[0].state == TrialState.COMPLETE
