"""Bad input gets one clear line that names the key and the value, before any training, and leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException

from kdnas.errors import ConfigError
from kdnas.runner import run
from kdnas.search.study import Study, open_storage
from kdnas.sweeper import KDNASSweeper

ROOT = Path(__file__).parent.parent
SMALL = ["data.rows=64", "data.held_out=16", "trainer.max_epochs=1", "latency.repeats=1", "latency.runs=1"]
SMALL += ["latency.accelerators=[cpu]", "architecture.num_hidden_layers=2", "architecture.num_attention_heads=2"]
SMALL += ["architecture.hidden_size=16", "architecture.intermediate_size=32"]


@pytest.fixture
def composed(tmp_path, teacher):
    """Composes a config as the commands do; `output` is where the run would write."""

    def compose_one(name, *overrides):
        base = [
            f"teacher.path={teacher}",
            "++teacher.prepare=null",
            f"paths.runs={tmp_path}",
            f"paths.output={tmp_path}/out",
        ]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose(name, [*base, *overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        return cfg

    return compose_one


def refused(cfg, tmp_path):
    """The message of the one error, after making sure that nothing was trained or written."""
    with pytest.raises(ConfigError) as caught:
        run(cfg)
    message = str(caught.value)
    assert "\n" not in message
    assert not (tmp_path / "search").exists()
    assert not list(tmp_path.rglob("*.ckpt")) and not list(tmp_path.rglob("*.safetensors"))
    return message


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("architecture.num_hidden_layers=0", "architecture.num_hidden_layers=0: must be a whole number from 1"),
        ("architecture.num_hidden_layers=2.5", "architecture.num_hidden_layers=2.5: must be a whole number from 1"),
        ("architecture.num_hidden_layers=9", "architecture.num_hidden_layers=9: must be at most 4"),
        (
            "architecture.num_attention_heads=3",
            "architecture.num_attention_heads=3: must divide architecture.hidden_size=16",
        ),
        ("architecture.hidden_act=gellu", "architecture.hidden_act=gellu: must be one of"),
        ("+architecture.heads=4", "architecture.heads=4: not a key"),
        (
            "objective.mapping=every_second",
            "objective.mapping=every_second: must be one of last_1, last, uniform, uniform_last",
        ),
        ("objective.normalize=std", "objective.normalize=std: must be one of none, variance"),
        ("data.rows=0", "data.rows=0: must be a whole number from 1"),
        ("latency.accelerators=[tpu]", "latency.accelerators=tpu: not on this machine; it has cpu"),
        ("latency.length=4096", "latency.length=4096: the model has"),
        ("latency.repeats=0", "latency.repeats=0: must be a whole number from 1"),
        ("latency.dtype=float99", "latency.dtype=float99: must be a torch dtype"),
        ("architectures=[]", "architectures=[]: must name at least one student"),
        ("teacher.path=/no/such/teacher", "teacher.path=/no/such/teacher: no model there"),
        ("stage=medium", "stage=medium: must be one of prepare, mini, full"),
        (
            "data=glue",
            "GlueDataModule: wants a value that no chosen group gives (Interpolation key 'task.name' not found)",
        ),
    ],
)
def test_a_distillation_is_refused(override, says, composed, tmp_path):
    assert says in refused(composed("train", "+experiment=demo", *SMALL, override), tmp_path)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["+search.stages.full.trainer.precision=17"], "Precision 17 is invalid"),
        (["trainer.precision=16-mixed", "search.gang=2"], "trainer.precision=16-mixed: must be bf16-mixed for a gang"),
        (["+search.stages.mini.objective.labels.epochs=1"], "search.stages.mini.objective.labels: not a setting of"),
        (["reward=kdnas_v1"], "reward.quality.name=accuracy: not measured; there is loss"),
        (
            ["task=demo", "objective=xtremedistil", "~objective.normalize"],
            "trainer.max_epochs=1: must be null; the stages have epochs",
        ),
    ],
)
def test_every_stage_of_a_search_is_refused_at_its_start(overrides, says, composed, tmp_path):
    assert says in refused(composed("search", "+experiment=demo", *SMALL[:2], "stage=prepare", *overrides), tmp_path)


def test_a_hub_id_without_network_is_refused(composed, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refused(composed("train", "+experiment=demo", *SMALL, "teacher.path=someone/some-encoder"), tmp_path)
    assert message.startswith("teacher.path=someone/some-encoder: no model there")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.path=/no/such/folder"], "data.path=/no/such/folder: no dataset there that can be read"),
        (["data.path={empty}"], "data.path={empty}: no dataset there that can be read"),
        (["data.columns=[premise,sentence]"], "train has no column sentence; it has"),
        (["data.split=training"], "has no split training; it has"),
        (["data.validation=dev"], "has no split dev; it has"),
    ],
)
def test_data_is_refused(overrides, says, composed, tmp_path, text_dataset):
    empty = tmp_path / "empty"
    empty.mkdir()
    text = ["data=wikipedia", f"data.path={text_dataset}", "data.name=null", "data.columns=[premise,hypothesis]"]
    text += ["data.sentences=false", *SMALL, *(override.format(empty=empty) for override in overrides)]
    assert says.format(empty=empty) in refused(composed("train", "+experiment=demo", *text), tmp_path)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["search.candidates=0"], "search.candidates=0: must be a whole number from 1"),
        (["search.episodes=0"], "search.episodes=0: must be a whole number from 1"),
        (["search.finalists=-1"], "search.finalists=-1: must be a whole number from 0"),
        (["search.gang=0"], "search.gang=0: must be a whole number from 1"),
        (["controller.epsilon=1.5"], "controller.epsilon=1.5: must be from 0 to 1"),
        (["controller.epsilon_min=-0.1"], "controller.epsilon_min=-0.1: must be from 0 to 1"),
        (["reward.alpha=0.06"], "reward.alpha=0.06: must be at most 0"),
        (["reward.beta=0"], "reward.beta=0: must be above 0"),
        (["search.dir=/proc/kdnas"], "search.dir=/proc/kdnas: cannot be written to"),
        (["search.dir={file}/below"], "search.dir={file}/below: cannot be written to"),
        (["seed=1,2"], "seed=1,2: search.py takes one value a key"),
    ],
)
def test_a_search_is_refused_before_any_job(overrides, says, composed, tmp_path):
    (tmp_path / "file").touch()
    overrides = [override.format(file=tmp_path / "file") for override in overrides]
    sweeper = KDNASSweeper()
    sweeper.config = composed("search", "+experiment=demo", *(o for o in overrides if o != "seed=1,2"))
    sweeper._launch = lambda *_, **__: pytest.fail("a job was launched")
    with pytest.raises(SystemExit, match="^error: ") as caught:
        sweeper.sweep(overrides)
    assert says.format(file=tmp_path / "file") in str(caught.value.code)


def test_proxy_out_of_range_is_refused_by_the_first_job(composed, tmp_path):
    cfg = composed("search", "+experiment=demo", "stage=prepare", "data.proxy=1.5")
    assert "data.proxy=1.5: must be above 0 and at most 1" in refused(cfg, tmp_path)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("reward=kdnas_v1", "reward.quality.name=accuracy: not measured; there is loss"),
        ("reward.cost.accelerator=cuda", "reward.cost.accelerator=cuda: not measured"),
        ("space.hidden_act=[gelu,gellu]", "architecture.hidden_act=gellu: must be one of"),
        ("data.proxy=many", "data.proxy=many: must be above 0 and at most 1"),
    ],
)
def test_what_would_fail_every_candidate_is_refused_by_the_first_job(override, says, composed, tmp_path):
    cfg = composed("search", "+experiment=demo", *SMALL, "stage=prepare", override)
    assert says in refused(cfg, tmp_path)


def test_a_folder_that_holds_something_else_is_not_exported_over(composed, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    cfg = composed("train", "+experiment=demo", *SMALL, f"paths.export={tmp_path}/mine")
    assert f"paths.export={tmp_path}/mine: holds something that is not a model" in refused(cfg, tmp_path)
    assert (tmp_path / "mine/thesis.tex").exists()


def test_a_space_without_members_is_refused(composed, tmp_path):
    cfg = composed("search", "+experiment=demo", "stage=prepare", "space.num_hidden_layers=[7,8]")
    assert "space: none of its" in refused(cfg, tmp_path)


def test_an_architecture_from_an_unfinished_search_is_refused(composed, tmp_path):
    cfg = composed("train", "+experiment=demo", "architecture=from_search", f"search.dir={tmp_path}")
    assert f"search.dir={tmp_path}: holds no search" in refused(cfg, tmp_path)
    study = Study(open_storage(tmp_path))
    assert "this search has not finished" in refused(cfg, tmp_path)
    study.optuna.set_user_attr("finished", True)
    assert "architecture.rank=1: must be from 1 to 0" in refused(cfg, tmp_path)


@pytest.mark.parametrize("source", ["/no/such.ckpt", "/no/such/folder", "{truncated}"])
def test_a_checkpoint_is_refused(source, composed, tmp_path):
    truncated = tmp_path / "truncated.bin"
    truncated.write_bytes(b"PK\x03\x04 not much of a zip file")
    source = source.format(truncated=truncated)
    cfg = composed("train", "+experiment=finetune", f"checkpoint={source}", "data=demo", "task=demo")
    assert refused(cfg, tmp_path).startswith(f"checkpoint={source}: ")


def test_nothing_to_fine_tune_is_refused(composed, tmp_path):
    cfg = composed("train", "+experiment=finetune", "data=demo", "task=demo")
    assert refused(cfg, tmp_path).startswith("checkpoint=null: must be")
    cfg = composed("train", "+experiment=glue", "data=demo", "task=rte")
    assert "Missing mandatory value: model" in refused(cfg, tmp_path)


def test_names_that_do_not_exist_are_refused_by_hydra(composed):
    for override in ("architecture=kdnas_v9", "objective=none_such", "controller=none_such"):
        with pytest.raises(ConfigCompositionException, match="none_such|kdnas_v9"):
            composed("train", "+experiment=demo", override)


@pytest.mark.parametrize(
    ("script", "override", "says"),
    [
        ("train.py", "architecture.num_attention_heads=5", "architecture.num_attention_heads=5: must divide"),
        ("search.py", "objective.mapping=nearest", "objective.mapping=nearest: must be one of"),
        ("search.py", "controller=feedback,random", "controller=feedback,random: search.py takes one value a key"),
    ],
)
def test_the_command_says_it_in_one_line(script, override, says, tmp_path):
    call = [sys.executable, script, "+experiment=demo"]  # with a teacher that would have to be trained first
    done = subprocess.run(
        [*call, f"paths.runs={tmp_path}", override],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and says in errors[0]
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "search/demo").exists() and not (tmp_path / "teachers").exists()
