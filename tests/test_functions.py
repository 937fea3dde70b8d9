"""The three functions of `import kdnas`, in one process and one after the other."""

import logging
import subprocess
import sys

import pytest
from hydra.core.global_hydra import GlobalHydra
from optuna.trial import TrialState
from transformers import AutoModel

import kdnas
from kdnas.base.errors import ConfigError
from kdnas.search.journal import open_storage
from kdnas.search.study import Study

TINY = [
    "+experiment=demo",
    "student/init=random",
    "data.rows=64",
    "data.held_out=32",
    "data.proxy=0.5",
    "trainer.max_epochs=1",
]
TINY += ["space.num_hidden_layers=[1,2]", "space.hidden_size=[16,32]", "space.num_attention_heads=[2]"]
TINY += ["space.intermediate_size=[32,64]", "latency.accelerators=[cpu]", "latency.repeats=1", "latency.runs=1"]
TINY += ["latency.patience=0", "search.stages.mini.trainer.max_epochs=1", "++teacher.prepare=null"]
TINY += ["trainer.accelerator=cpu", "trainer.precision=32-true"]


@pytest.fixture
def settings(teacher, tmp_path):
    return [*TINY, f"teacher.path={teacher}", f"paths.runs={tmp_path}"]


def test_search_open_and_distil(settings, tmp_path):
    arguments, handlers = sys.argv[:], logging.getLogger().handlers[:]
    with pytest.raises(ConfigError, match=r"^search\.episodes=0: must be"):
        kdnas.run_search(*settings, "search.episodes=0")
    sizes = ["search.episodes=1", "search.candidates=2", "search.finalists=1"]
    found = kdnas.run_search(*settings, *sizes, f"search.dir={tmp_path}/search")
    assert (sys.argv, logging.getLogger().handlers, GlobalHydra.instance().hydra) == (arguments, handlers, None)

    trials = {trial.number: trial for trial in Study(open_storage(tmp_path / "search")).trials(TrialState.COMPLETE)}
    assert sorted(found["trial"]) == sorted(trials) == [0, 1] and list(found["rank"]) == [1, 2]
    for row in found.to_dict("records"):
        trial = trials[row["trial"]]
        assert {name: row[name] for name in trial.params} == trial.params
        assert (row["reward"], row["held-out loss"]) == (trial.value, trial.user_attrs["metrics"]["loss"])
        assert row["latency cpu (ms)"] > 0 and row["FLOPs (G)"] > 0
    model = AutoModel.from_pretrained(found["export"][0], add_pooling_layer=False)
    assert found["parameters (M)"][0] == sum(weight.numel() for weight in model.parameters()) / 1e6
    assert kdnas.open_search(tmp_path / "search").equals(found)

    winner = ["architecture=from_search", f"search.dir={tmp_path}/search", f"paths.output={tmp_path}/again"]
    winner = [word for word in [*settings, *winner] if not word.startswith(("data.proxy", "space."))]
    assert kdnas.distil(*winner) == {"loss": pytest.approx(found["full held-out loss"][0], rel=1e-6)}
    AutoModel.from_pretrained(tmp_path / "again/model")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: kdnas.distil("seed=-1"), r"^seed=-1: must be"),
        (lambda: kdnas.distil("--help"), "^--help: must be an override"),
        (lambda: kdnas.distil("nothing=1"), "^nothing: not a key"),
        (lambda: kdnas.distil(config_dir="no/such"), "^config_dir=no/such: must be a folder of configs"),
        (lambda: kdnas.open_search("no/such"), "^folder=no/such: must be a search folder"),
    ],
)
def test_bad_input_is_an_exception_of_one_line(call, says):
    with pytest.raises(ConfigError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_configs_of_ones_own(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text("# @package _global_\nseed: -7\n")
    with pytest.raises(ConfigError, match="^seed=-7: must be"):
        kdnas.distil("+experiment=mine", config_dir=tmp_path)


def test_importing_kdnas_is_fast():
    code = "import kdnas, sys; assert not {'torch', 'pandas', 'hydra'} & sys.modules.keys(); kdnas.distil; kdnas.no"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "AttributeError: module 'kdnas' has no attribute 'no'"
