"""What a search does with candidates that fail, in every way they can, wherever they run."""

import pytest
from failing import TERM
from forked import run
from optuna.trial import TrialState
from test_search import TINY

from kdnas.search.journal import open_storage
from kdnas.search.study import Study

DONE = None
RAISED = {
    32: DONE,
    34: "ArithmeticError: this student is impossible",
    36: "SystemExit: 3",
    38: "Unreadable: one and other",
}
CAUGHT = {
    40: "DefaultCPUAllocator: can't allocate memory",
    42: "diverged: held-out loss nan",
    44: "trainer.max_time=00:00:00:10: time ran out",
}
"""Failures that a job meets in itself, whichever launcher runs it, and the reasons that are recorded."""
LOST = {48: "(tried 2 times)"}
LAUNCHERS = {
    "basic": (RAISED | CAUGHT, []),
    "joblib": (RAISED | LOST, ["hydra.launcher.n_jobs=2"]),
    "local": (RAISED | LOST | {46: DONE}, ["hydra.launcher.n_jobs=2"]),
}


def command(folder, marks, teacher, *overrides):
    words = ["search.py", *TINY, *overrides, f"paths.runs={folder}"]
    words += ["space.num_hidden_layers=[1]", "space.hidden_size=[16]", "space.hidden_act=[gelu]"]
    words += [f"teacher.path={teacher}", "++teacher.prepare=null", "search.finalists=0", "search.max_failed=1"]
    words += [f"{TERM}._target_=tests.failing.Fateful", f"+{TERM}.marks={marks}"]
    return [*words, "trainer.max_time=00:00:00:10"]


def of_fates(expected):
    """The overrides of a search that tries each size once."""
    sizes = ",".join(map(str, expected))
    return [f"space.intermediate_size=[{sizes}]", "search.episodes=1", f"search.candidates={len(expected)}"]


def check_fates(study, expected):
    by_size = {trial.params["intermediate_size"]: trial for trial in study.trials()}
    assert by_size.keys() == expected.keys()
    for size, reason in expected.items():
        trial = by_size[size]
        assert trial.state == (TrialState.COMPLETE if reason is DONE else TrialState.FAIL), size
        assert reason is DONE or reason in trial.user_attrs["reason"], size
        assert reason is DONE or trial.value is None


@pytest.mark.long
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_failure_is_recorded_and_costs_nobody_else(launcher, teacher, tmp_path):
    expected, own = LAUNCHERS[launcher]
    done = run(command(tmp_path, tmp_path, teacher, *of_fates(expected), f"hydra/launcher={launcher}", *own))
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    check_fates(Study(open_storage(tmp_path / "search/demo")), expected)
    assert "this student is impossible" in done.stdout


@pytest.mark.long
def test_one_of_a_gang_that_does_not_fit_is_run_alone_and_the_others_are_not_run_again(teacher, tmp_path):
    runs = tmp_path / "runs"
    (tmp_path / "marks").mkdir()
    done = run(command(runs, tmp_path / "marks", teacher, *of_fates([32, 40]), "search.gang=2"))
    assert done.returncode == 0, done.stderr[-3000:]
    check_fates(Study(open_storage(runs / "search/demo")), {32: DONE, 40: CAUGHT[40]})
    folders = {path.name for path in (runs / "search/demo/mini").iterdir()}
    study = Study(open_storage(runs / "search/demo"))
    (lost,) = (trial.number for trial in study.trials() if trial.params["intermediate_size"] == 40)
    assert folders == {"0000+0001", f"{lost:04d}"}
    assert (
        "does not fit into memory beside the others of its gang"
        in (runs / "search/demo/mini/0000+0001/search.log").read_text()
    )
