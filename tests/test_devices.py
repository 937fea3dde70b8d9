"""Training on several devices takes the course of training on one, through the command that people type."""

import fcntl
import json
import signal
import socket
from collections import Counter
from types import SimpleNamespace

import forked
import numpy as np
import pandas as pd
import pytest
import torch
from forked import ROOT, Forked
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kdnas.app.preflight import preflight
from kdnas.app.run import run
from kdnas.base import identity
from kdnas.base import run_folder as runs
from kdnas.base.errors import ConfigError
from kdnas.base.host import QuietHost
from kdnas.callbacks.steps import QuietSteps, SeedSteps
from kdnas.costs.table import read_table
from kdnas.datamodules import SyntheticNLI, grammar
from kdnas.datamodules.bucketing import BucketSampler
from kdnas.datamodules.synthetic import UNLIKE_OTHERS
from kdnas.modules import StudentDistiller
from kdnas.training import trainer as devices

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

STAGES = ("representation", "logits", "labels")
SIZES = ["{num_hidden_layers:2,num_attention_heads:2,hidden_size:8,intermediate_size:16,hidden_act:gelu}"]
SIZES += ["{num_hidden_layers:1,num_attention_heads:4,hidden_size:20,intermediate_size:32,hidden_act:silu}"]
SIZES += ["{num_hidden_layers:3,num_attention_heads:1,hidden_size:12,intermediate_size:16,hidden_act:relu}"]
LOSS = {"rtol": 5e-5, "atol": 1e-6}
"""Of float32: the sum of two halves is rounded in other places than the sum of the whole."""
WEIGHTS = {"rtol": 1e-4, "atol": 2e-4}
"""A single step of Adam is up to 1e-2, and all rounding where a gradient is next to nothing."""
NOISE = "attention.self.key.bias"
"""Changes no output, so its gradient is nothing but rounding."""


@pytest.fixture(scope="module")
def sources(teacher, teach, tmp_path_factory) -> dict[str, str]:
    """The random teacher, and the same with a classifier of three classes and no dropout."""
    folder = tmp_path_factory.mktemp("teacher") / "classifier"
    torch.manual_seed(4)
    dry = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = AutoModelForSequenceClassification.from_pretrained(teacher, num_labels=3, **dry)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    teach(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"encoder": teacher, "classifier": str(folder)}


def task(*overrides, rows=31):
    """The built-in task, small. Two devices share five rows unevenly, and one row is left over for the last batch."""
    small = ["data=demo", "task=demo", f"data.rows={rows}", "data.held_out=9", "data.proxy=1", "data.batch_size=5"]
    return [*small, "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.log_every_n_steps=1", *overrides]


def rows_of_task(rows):
    """The same rows for what has no use for labels."""
    return [word for word in task(rows=rows) if word != "task=demo"]


def stages(sources, students):
    """Three stages of two epochs, the last two of which unfreeze in the second."""
    settings = ["objective=xtremedistil", "trainer.max_epochs=null", "module.dropout=0.0", "~latency"]
    settings += ["objective.representation.tokens=all"]  # not as many on each device
    settings += [f"objective.{stage}.{name}" for stage in STAGES for name in ("learning_rate=1e-2", "epochs=2")]
    return task(*settings, f"teacher.path={sources['classifier']}", f"architectures=[{','.join(SIZES[:students])}]")


def alone(folder, overrides):
    """The run in this process; returns its folder."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        run(compose("train", [*overrides, f"paths.runs={folder}", f"paths.output={folder}", "search.dir=null"]))
    return folder


def command(script, folder, overrides, expected=0):
    """The run by the command line, from a working directory of its own; returns what it printed."""
    folder.mkdir(exist_ok=True)
    done = forked.run([ROOT / script[0], *script[1:], *overrides], cwd=folder)
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stdout + done.stderr


def together(folder, overrides, number=2):
    """The run by `train.py` on several devices; returns its folder, which has to be the only one."""
    said = command(["train.py"], folder, [*overrides, f"trainer.devices={number}", "paths.runs=runs"])
    assert said.count("and results.json beside them") == 1
    assert [path.name for path in folder.iterdir()] == ["runs"]
    (output,) = (path for path in (folder / "runs").glob("*/*/") if path.parent.name not in ("teachers", "outputs"))
    return output


def curve(folder):
    """Each column of metrics.csv, without its gaps."""
    table = pd.read_csv(folder / "metrics.csv")
    return {name: table[name].dropna().to_numpy() for name in table}


def agree(one, other, curves=True):
    """The same losses, figures and weights, as far as float32 goes."""
    for name in ("results.json", "settings.json"):
        assert (one / name).is_file() and (other / name).is_file()
    figures = [json.loads((folder / "results.json").read_text()) for folder in (one, other)]
    for ours, theirs in zip(*figures, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    if curves:
        ours, theirs = curve(one), curve(other)
        assert ours.keys() == theirs.keys() and len(ours["train/loss"]) > 10
        for name, values in ours.items():
            np.testing.assert_allclose(values, theirs[name], **LOSS, err_msg=name)
    for name in ("best.ckpt", "last.ckpt"):
        states = [torch.load(folder / name, weights_only=True)["state_dict"] for folder in (one, other)]
        assert states[0].keys() == states[1].keys()
        for key, value in states[0].items():
            if not key.endswith(NOISE):
                torch.testing.assert_close(value, states[1][key], **WEIGHTS, msg=lambda text, key=key: f"{key}: {text}")


# -- the same course


@pytest.fixture(scope="module")
def one_student(sources, tmp_path_factory):
    """The folder of one student's run through all stages in this process."""
    return alone(tmp_path_factory.mktemp("one"), stages(sources, 1))


@pytest.mark.long
@pytest.mark.parametrize("students", [3, 1])
def test_two_devices_go_through_all_stages_as_one(sources, students, one_student, tmp_path):
    settings = stages(sources, students)
    one = one_student if students == 1 else alone(tmp_path / "one", settings)
    two = together(tmp_path / "two", settings)
    agree(one, two)
    losses = np.split(curve(one)["train/loss"], 3)
    assert all(len(stage) == 2 * 7 and stage[-1] < stage[0] for stage in losses)  # every step, and they learn
    prefix = "" if students == 1 else "/0"
    loaded = AutoModelForSequenceClassification.from_pretrained(f"{two}/model{prefix}")
    saved = torch.load(two / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[f"students.0.model.{name}"]) for name, value in loaded.state_dict().items())


@pytest.mark.long
@pytest.mark.parametrize("numbers", [(2, 1), (1, 2)])
def test_a_killed_run_goes_on_with_another_number_of_devices(sources, numbers, one_student, tmp_path):
    """Killed in the second of a stage's epochs, before which it has saved a frozen student."""
    settings, cut = stages(sources, 1), tmp_path / "cut"
    here = [*settings, f"paths.runs={cut}", f"paths.output={cut}", f"hydra.run.dir={cut}"]
    first, then = ([*here, f"trainer.devices={number}"] for number in numbers)
    command(["tests/killed.py", "3"], cut, first, expected=-signal.SIGKILL)
    assert torch.load(cut / "last.ckpt", weights_only=True)["epoch"] == 2 and not (cut / "results.json").exists()
    if numbers[1] == 1:
        alone(cut, then)
    else:
        assert "going on from" in command(["train.py"], cut, then)
    agree(one_student, cut, curves=False)


@pytest.mark.long
def test_hidden_states_on_three_devices(sources, tmp_path):
    """With the variances of held-out states, latencies, and a strategy by name."""
    settings = [*rows_of_task(61), f"teacher.path={sources['encoder']}", "objective.normalize=variance"]
    settings += [f"architectures=[{','.join(SIZES[:2])}]", "trainer.max_epochs=3", "module.dropout=0.0"]
    settings += ["latency.accelerators=[cpu]", "latency.length=16", "latency.repeats=2", "latency.runs=1"]
    settings += ["latency.patience=0"]
    one = alone(tmp_path / "one", settings)
    three = together(tmp_path / "three", [*settings, "trainer.strategy=ddp"], 3)
    agree(one, three)
    variances = [
        torch.load(folder / "last.ckpt", weights_only=True)["state_dict"][
            "students.0.objectives.0.hidden_states.variance"
        ]
        for folder in (one, three)
    ]
    torch.testing.assert_close(*variances, rtol=1e-6, atol=0)
    assert (variances[0] != 1).all()
    keys = [str(row["key"]) for row in read_table(tmp_path / "three/runs/latency.jsonl")]
    assert len(set(keys)) == len(keys) <= 3  # of the teacher and two students; a busy host's are not kept


@pytest.mark.long
def test_fine_tuning_on_two_devices(sources, tmp_path):
    settings = ["+experiment=finetune", *task(f"checkpoint={sources['classifier']}", "trainer.max_epochs=2", rows=61)]
    settings += ["module.learning_rate=1e-3"]
    agree(alone(tmp_path / "one", settings), together(tmp_path / "two", settings))


@pytest.mark.long
def test_pretraining_on_two_devices_masks_other_tokens_and_learns_alike(sources, tmp_path):
    settings = ["+experiment=pretrain", f"teacher.path={sources['encoder']}", f"architectures=[{SIZES[0]}]"]
    settings += [*rows_of_task(400), "data.held_out=100", "data.batch_size=16", "trainer.max_steps=200"]
    settings += ["trainer.limit_train_batches=20", "objective.tokens.learning_rate=1e-2", "module.dropout=0.0"]
    losses = [
        curve(folder)["val/loss"] for folder in (alone(tmp_path / "1", settings), together(tmp_path / "2", settings))
    ]
    for values in losses:
        assert len(values) == 11 and values[-1] < 0.95 * values[0]
    assert losses[0][-1] == pytest.approx(losses[1][-1], rel=0.03)


def test_a_finished_run_is_known_whatever_it_ran_on(tmp_path):
    config = OmegaConf.create(
        {name: {} for name in identity.DECIDE} | {"trainer": {"devices": 2, "precision": "32-true"}}
    )
    runs.note(tmp_path, config, "rows")
    (tmp_path / runs.RESULTS).write_text("[{}]")
    noted = json.loads((tmp_path / runs.SETTINGS).read_text())
    assert "trainer.devices" not in noted
    (tmp_path / runs.SETTINGS).write_text(json.dumps(noted | {"trainer.devices": 1}))  # as they once were
    assert runs.earlier_results(tmp_path, config) == [{}]
    config.trainer.precision = "bf16-mixed"
    with pytest.raises(ConfigError, match="^trainer.precision=bf16-mixed"):
        runs.earlier_results(tmp_path, config)


# -- on SLURM


def slurm(rank, tasks):
    """What srun tells a task."""
    step = {"SLURM_NTASKS": tasks, "SLURM_NTASKS_PER_NODE": tasks, "SLURM_STEP_NUM_TASKS": tasks, "SLURM_NNODES": 1}
    own = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": 0, "SLURM_JOB_ID": 1, "SLURM_JOB_NAME": "t"}
    return {name: str(value) for name, value in (step | own).items()} | {"SLURM_NODELIST": "127.0.0.1"}


@pytest.fixture
def first_task(monkeypatch):
    """This process as the only task of an srun."""
    for name, value in slurm(0, 1).items():
        monkeypatch.setenv(name, value)


@pytest.mark.long
def test_tasks_of_slurm_train_together_and_make_their_teacher_once(sources, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    splits = {"train": 31, "validation_matched": 9, "validation_mismatched": 9}
    for seed, (split, rows) in enumerate(splits.items()):
        pairs = grammar.pairs(rows, UNLIKE_OTHERS if split == "validation_matched" else seed)  # the teacher's own
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    files = "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in splits)
    (data / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n")
    settings = [*stages(sources, 2), "data=glue", "task=mnli", f"data.path={data}", "data.name=null"]
    settings = [one for one in settings if not one.startswith(("data=demo", "task=demo", "data.rows", "teacher.path"))]
    settings += ["data.max_length=64", "teacher=finetuned", "teacher.epochs=1"]
    settings += [f"teacher.source={sources['classifier']}", "teacher.name=tiny"]
    one, folder = alone(tmp_path / "one", settings), tmp_path / "two"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    settings += ["trainer.devices=2", f"paths.runs={folder}", f"hydra.run.dir={folder}/run"]
    with (tmp_path / "log").open("w") as log:
        tasks = [slurm(rank, 2) | {"MASTER_PORT": port} for rank in range(2)]
        processes = [Forked(["train.py", *settings], log, log, environment=task) for task in tasks]
        ended = [process.wait(600) for process in processes]
    said = (tmp_path / "log").read_text()
    assert ended == [0, 0], said
    assert said.count("training it, unless it is finished") == 1
    agree(one, folder / "run")


def test_slurm_s_signal_to_requeue_is_left_to_who_submitted(sources, first_task, tmp_path, monkeypatch):
    """Lightning would take it for its own, and requeue what submitit requeues too."""
    heard, step = [], StudentDistiller.training_step

    def listening(module, *arguments):
        heard.append(signal.getsignal(signal.SIGUSR1))
        return step(module, *arguments)

    monkeypatch.setattr(StudentDistiller, "training_step", listening)
    alone(tmp_path, stages(sources, 1))
    assert devices.on_slurm() and set(heard) == {signal.SIG_DFL}


# -- shares


@pytest.mark.parametrize(("rows", "size", "world"), [(41, 8, 2), (41, 8, 3), (33, 8, 3), (10, 4, 4), (7, 8, 3)])
def test_the_shares_of_every_batch_are_the_batch(rows, size, world):
    lengths = np.random.default_rng(0).integers(4, 65, rows).tolist()

    def batches(**share):
        sampler = BucketSampler(lengths, size, seed=3, epoch=lambda: 2, **share)
        assert len(list(sampler)) == len(sampler)
        return list(sampler)

    whole, shares = batches(), [batches(rank=rank, world=world) for rank in range(world)]
    for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
        if len(batch) < world:
            assert parts == (batch,) * world  # each the whole step
        else:
            assert sorted(row for part in parts for row in part) == sorted(batch)
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert sorted(row for batch in whole for row in batch) == list(range(rows))


@pytest.mark.parametrize(("rows", "size", "world"), [(41, 8, 2), (41, 8, 3), (33, 8, 3), (10, 4, 4), (3, 8, 3)])
def test_every_held_out_row_is_in_one_share(rows, size, world):
    lengths = np.random.default_rng(0).integers(4, 65, rows).tolist()
    samplers = [BucketSampler(lengths, size, shuffle=False, rank=rank, world=world) for rank in range(world)]
    assert Counter(row for sampler in samplers for batch in sampler for row in batch) == Counter(range(rows))
    assert all(len(list(sampler)) == len(sampler) and all(sampler) for sampler in samplers)


def test_dropout_differs_between_the_devices_of_a_step_and_not_between_runs():
    def drawn(rank, epoch=1, batch=4):
        SeedSteps(7).on_train_batch_start(SimpleNamespace(current_epoch=epoch, global_rank=rank), None, None, batch)
        return torch.rand(3).tolist()

    assert drawn(0) == drawn(0) and drawn(1) == drawn(1)
    assert len({tuple(drawn(*place)) for place in ((0, 1, 4), (1, 1, 4), (2, 1, 4), (0, 1, 5), (1, 1, 5))}) == 5


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_process_of_a_host_holds_it_for_all(rank):
    """Two that each held it could wait for each other, and a measurement between them for both."""
    steps = QuietSteps()
    steps.on_train_batch_start(SimpleNamespace(local_rank=rank), None)
    with QuietHost().host.open("a") as file:
        if rank == 0:
            with pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    steps.on_exception()


# -- refusals


def composed(name, folder, *overrides, **settings):
    own = ["trainer.accelerator=cpu", "trainer.devices=2", f"paths.runs={folder}", f"paths.output={folder}/out"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(name, [*own, *overrides], **settings)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["trainer.strategy=fsdp"], "trainer.strategy=fsdp: must be one of auto, ddp; a student"),
        (["trainer.strategy=ddp_spawn"], "trainer.strategy=ddp_spawn: must be one of auto, ddp; a student"),
        (["trainer.devices=6"], "data.batch_size=5: must be at least 6, the devices that share each batch"),
        (["trainer.devices=0"], "trainer: `Trainer(devices=0)` value is not a valid input"),
        (["+trainer.fast_dev_run=-1"], "trainer.fast_dev_run=-1: must be left out; data.rows, data.held_out"),
    ],
)
def test_wrong_settings_are_refused(sources, tmp_path, overrides, says):
    with pytest.raises(ConfigError) as refusal:
        alone(tmp_path, [*stages(sources, 1), *overrides])
    assert str(refusal.value).startswith(says) and "\n" not in str(refusal.value)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_search_on_several_devices_is_refused_before_its_teacher_is_made(tmp_path):
    with pytest.raises(ConfigError, match="^trainer.devices=2: 2 in all; must be 1 in a search"):
        run(composed("search", tmp_path, "+experiment=demo", "job={kind:prepare}"))
    assert not (tmp_path / "teachers").exists()


ARCHITECTURE = "{num_hidden_layers:1,num_attention_heads:2,hidden_size:8,intermediate_size:8,hidden_act:gelu}"
ONE_FINALIST = f"job={{kind:full,trials:[0],architectures:[{ARCHITECTURE}]}}"


def test_a_finalist_on_several_devices_is_refused(tmp_path):
    cfg = composed("search", tmp_path, "data=demo", ONE_FINALIST, "teacher.path=x")
    with pytest.raises(ConfigError, match="^trainer.devices=2: 2 in all; must be 1 in a search"):
        preflight(cfg)


def test_a_multirun_on_several_devices_is_refused(sources, tmp_path, monkeypatch):
    cfg = composed("train", tmp_path, "hydra.mode=MULTIRUN", return_hydra_config=True)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", cfg)
    with pytest.raises(ConfigError, match="^trainer.devices=2: 2 in all; must be 1 in a multirun"):
        alone(tmp_path, [*stages(sources, 1), "trainer.devices=2"])


def test_more_devices_than_tasks_of_slurm_are_refused(sources, first_task, tmp_path):
    with pytest.raises(ConfigError, match="^trainer.devices=2: 2 in all; must be as many as the tasks .* started, 1$"):
        alone(tmp_path, [*stages(sources, 1), "trainer.devices=2"])


def test_fewer_held_out_rows_than_devices_are_refused(teacher):
    data = SyntheticNLI(tokenizer=AutoTokenizer.from_pretrained(teacher), rows=20, held_out=2)
    data.setup()
    with pytest.raises(ConfigError, match="^held_out=2: must be at least 3, the devices that share them$"):
        data.divide(0, 3)
