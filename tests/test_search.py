"""The whole job through the real command, at the smallest size that is still the real thing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from failing import TERM
from forked import ROOT, run
from omegaconf import OmegaConf
from optuna.trial import TrialState
from transformers import AutoModel, AutoTokenizer

from kdnas.search.journal import open_storage
from kdnas.search.ranking import ByReward, candidates
from kdnas.search.study import Study

TINY = [
    "+experiment=demo",
    "student/init=random",
    "space.num_hidden_layers=[1,2]",
    "space.hidden_size=[16,32]",
    "space.num_attention_heads=[2]",
    "space.intermediate_size=[32,64]",
    "data.rows=256",
    "data.held_out=64",
    "data.proxy=0.5",
    "latency.repeats=3",
    "latency.runs=1",
    "latency.accelerators=[cpu]",
    "latency.patience=0",
    "search.stages.mini.trainer.max_epochs=1",
    "trainer.max_epochs=1",
]


def call(script, *overrides, runs, teacher):
    teachers = [f"teacher.path={teacher}", "++teacher.prepare=null", f"paths.runs={runs}"]
    return run([script, *TINY, *teachers, *overrides])


def observed(folder):
    return {seen.trial: (seen.architecture, seen.metrics["loss"]) for seen in Study(open_storage(folder)).observations}


@pytest.fixture(scope="module")
def searched(tmp_path_factory, teacher):
    """A finished search of 2 episodes x 3 candidates and 2 finalists: its folder, and what it printed."""
    runs = tmp_path_factory.mktemp("searched")
    sizes = ["search.episodes=2", "search.candidates=3", "search.finalists=2", "controller.epsilon_decay=0.5"]
    done = call("search.py", *sizes, runs=runs, teacher=teacher)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    return runs / "search/demo", done.stdout, sizes


def test_a_search_leaves_everything_that_it_promises(searched):
    folder, printed, _ = searched
    mini, full = Study(open_storage(folder)), Study(open_storage(folder), "full")
    assert [seen.trial for seen in mini.observations] == list(range(6))
    assert len({seen.architecture for seen in mini.observations}) == 6
    assert [seen.origin for seen in mini.observations] == ["random"] * 3 + ["controller"] + ["random"] * 2
    best = [one.mini.trial for one in ByReward().order(candidates(mini))[:2]]
    assert [trial.user_attrs["candidate"] for trial in full.trials(TrialState.COMPLETE)] == best
    for trial in full.trials():
        model = AutoModel.from_pretrained(trial.user_attrs["export"])
        assert model.config.hidden_size == trial.params["hidden_size"]
        AutoTokenizer.from_pretrained(trial.user_attrs["export"])
        for name in ("last.ckpt", "best.ckpt"):
            assert (Path(trial.user_attrs["export"]).parent / name).is_file()
    for name in ("table.csv", "table.md", "reward.png", "pareto.png", "controller.png"):
        assert (folder / "report" / name).stat().st_size > 0
    for name in ("episode 2/2, trial 5 (6 of 6)", "best so far", "left", "architecture=from_search", "AutoModel"):
        assert name in printed
    assert "best so far" in (folder / "search.log").read_text()


def test_the_reward_is_the_papers(searched):
    """Eq. 4 from what the study holds: (1 - loss) (lat / (0.6 lat_T))^-0.06, divided where 1 - loss < 0."""
    study = Study(open_storage(searched[0]))
    lat_teacher = study.teacher.latency["cpu"].median
    for seen in study.observations:
        factor = (seen.cost.latency["cpu"].median / (0.6 * lat_teacher)) ** -0.06
        quality = 1 - seen.metrics["loss"]
        expected = quality * factor if quality >= 0 else quality / factor
        # With a latency of a busy host, the teacher's may have been measured again since.
        assert seen.reward == pytest.approx(expected, rel=0.2 if seen.estimated else 1e-6)


def test_the_same_command_again_trains_nothing(searched, teacher):
    folder, _, sizes = searched
    before = observed(folder)
    jobs = {path: path.stat().st_mtime_ns for path in folder.glob("mini/*/results.json")}
    again = call("search.py", *sizes, runs=folder.parent.parent, teacher=teacher)
    assert again.returncode == 0, again.stderr[-2000:]
    assert observed(folder) == before
    assert jobs == {path: path.stat().st_mtime_ns for path in folder.glob("mini/*/results.json")}


def test_other_settings_in_the_same_folder_are_refused(searched, teacher):
    folder, _, sizes = searched
    refused = call("search.py", *sizes, "data.proxy=0.25", runs=folder.parent.parent, teacher=teacher)
    assert refused.returncode != 0
    assert refused.stderr.strip().splitlines()[-1].startswith("error: data.proxy=0.25: ")


def test_a_jobs_overrides_repeat_its_candidate_by_hand(searched, teacher, tmp_path):
    folder, _, _ = searched
    overrides = OmegaConf.load(folder / "mini/0002/.hydra/overrides.yaml")
    done = run(["train.py", *overrides, "job.trials=[]", f"paths.output={tmp_path}"])
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "results.json").read_text())
    assert result[0]["loss"] == pytest.approx(observed(folder)[2][1], rel=1e-5)


@pytest.mark.long
def test_distil_the_winner_again_and_fine_tune_it(searched, teacher, tmp_path):
    folder, _, _ = searched
    rank = [
        "architecture=from_search",
        f"search.dir={folder}",
        "architecture.rank=2",
        f"paths.output={tmp_path / 'kd'}",
    ]
    done = call("train.py", *rank, runs=tmp_path, teacher=teacher)
    assert done.returncode == 0, done.stderr[-2000:]
    study = Study(open_storage(folder))
    expected = study.architecture(study.order[1])
    assert AutoModel.from_pretrained(tmp_path / "kd/model").config.intermediate_size == expected.intermediate_size
    for source in (tmp_path / "kd/best.ckpt", tmp_path / "kd/model"):
        folder = tmp_path / source.name / "ft"
        words = ["train.py", "+experiment=finetune", f"checkpoint={source}", "data=demo", "task=demo", "data.rows=64"]
        words += ["data.held_out=32", "trainer.max_epochs=1", f"paths.runs={tmp_path}", f"paths.output={folder}"]
        tuned = run(words)
        assert tuned.returncode == 0, tuned.stderr[-2000:]
        assert 0 <= json.loads((folder / "results.json").read_text())[0]["accuracy"] <= 1
    for name in ("last.ckpt", "best.ckpt", "model/config.json"):
        assert (tmp_path / "best.ckpt/ft" / name).is_file()


def test_a_candidate_that_fails_is_recorded_and_the_search_goes_on(teacher, tmp_path):
    sizes = ["search.episodes=1", "search.candidates=4", "search.gang=4", "search.finalists=1", "search.max_failed=1"]
    broken = [f"{TERM}._target_=tests.failing.ForWideStudents"]
    done = call("search.py", *sizes, *broken, runs=tmp_path, teacher=teacher)
    study = Study(open_storage(tmp_path / "search/demo"))
    assert done.returncode == 0, done.stderr[-2000:]
    # The gang fails as a whole; run one by one, only those at fault do.
    for trial in study.trials():
        wide = trial.params["hidden_size"] == 32
        assert trial.state == (TrialState.FAIL if wide else TrialState.COMPLETE)
        assert not wide or trial.user_attrs["reason"] == "MemoryError: no room for a hidden size of 32"
    failed = study.trials(TrialState.FAIL)
    assert failed and study.observations
    assert "Traceback" in (tmp_path / f"search/demo/mini/{failed[0].number:04d}/search.log").read_text()


def test_a_search_whose_candidates_all_diverge_says_why_and_fails(teacher, tmp_path):
    sizes = ["search.episodes=1", "search.candidates=2", "search.finalists=1", "module.learning_rate=1e30"]
    done = call("search.py", *sizes, "trainer.gradient_clip_val=null", runs=tmp_path, teacher=teacher)
    assert done.returncode != 0
    assert "error: search.max_failed=0.5: 2 of 2 candidates failed; 2 x diverged" in done.stderr


def test_hydra_starts_without_torch():
    """Hydra imports every sweeper at every start, `--help` and shell completion included."""
    code = "import hydra_plugins.kdnas_plugins, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
