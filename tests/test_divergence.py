"""A training that ends in numbers that are not finite has failed: real runs with absurd learning rates."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from labelled import classification, load_classifier
from objectives import hidden_states
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding

from kdnas.app import run as runner
from kdnas.app.teacher import ensure_teacher
from kdnas.app.training import complete
from kdnas.base.errors import ConfigError
from kdnas.callbacks.controller import ControllerUpdate
from kdnas.callbacks.export import ExportModels
from kdnas.costs.cost import Cost
from kdnas.models.architecture import Architecture
from kdnas.models.checkpoints import Pretrained
from kdnas.modules import StudentDistiller
from kdnas.modules.base import DivergedError
from kdnas.modules.finetuner import FineTuner
from kdnas.reports.glue.runs import read, unfinished
from kdnas.reports.glue.table import table

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

CONF = str(Path(__file__).resolve().parent.parent / "conf")
SMALL, WIDE = Architecture(1, 2, 8, 16, "gelu"), Architecture(1, 2, 16, 16, "gelu")
SIZES = [f"architecture.{name}={value}" for name, value in SMALL.to_dict().items()]
COMMANDS = {
    "fine-tuning": (["+experiment=demo_teacher"], "module.learning_rate"),
    "distillation": (["data=demo", *SIZES], "module.learning_rate"),
    "stages": (
        ["data=demo", "task=demo", "objective=xtremedistil", *SIZES, "objective.representation.epochs=0"],
        "objective.logits.learning_rate",
    ),
    "pretraining": (["+experiment=pretrain", "data=demo", *SIZES], "objective.tokens.learning_rate"),
}


def train(folder, teacher, *overrides):
    """Runs `train.py` with two epochs of the built-in task's rows in this process."""
    settings = [f"paths.runs={folder}/runs", f"paths.output={folder}/run", f"paths.export={folder}/run/model"]
    settings += [f"teacher.path={teacher}", "search.dir=null", "latency=default", "~latency", "data.rows=24"]
    settings += ["data.held_out=9", "data.batch_size=4", "trainer.accelerator=cpu", "trainer.precision=32-true"]
    with initialize_config_dir(CONF, version_base=None):
        return runner.run(compose("train", [*overrides, *settings]))


@pytest.fixture(scope="session")
def classifier(teacher, teach, tmp_path_factory):
    """A classifier of the built-in task's three classes that knows the held-out rows."""
    folder = tmp_path_factory.mktemp("classifier")
    model, tokenizer = load_classifier(teacher, 3)
    teach(model, tokenizer)
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_training_that_diverges_is_refused_and_leaves_nothing_that_counts(name, classifier, tmp_path):
    own, key = COMMANDS[name]
    epochs = "null" if name == "stages" else "3"
    own = [*own, f"trainer.max_epochs={epochs}", "trainer.max_steps=-1", "trainer.gradient_clip_val=null"]
    with pytest.raises(DivergedError, match=f"^{key}=100000000.0: must be lower; the training diverged: ") as refusal:
        train(tmp_path, classifier, *own, f"{key}=1e8")
    assert "epoch 1" in str(refusal.value) and len(str(refusal.value).splitlines()) == 1
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left <= {".lock", "settings.json", "metrics.csv"}
    assert pd.read_csv(tmp_path / "run/metrics.csv")["epoch"].max() < 2  # it ends where it diverges, not epochs later
    train(tmp_path, classifier, *own, f"{key}=1e-4")  # the folder is free for other settings
    weights = load_file(tmp_path / "run/model/model.safetensors")
    assert weights and all(value.isfinite().all() for value in weights.values())
    assert all(math.isfinite(value) for value in json.loads((tmp_path / "run/results.json").read_text())[0].values())


def test_a_teacher_that_diverges_is_not_kept(tmp_path):
    path = tmp_path / "teacher"
    steps = {
        "data.rows": 24,
        "data.held_out": 9,
        "data.batch_size": 4,
        "trainer.max_epochs": 1,
        "module.learning_rate": 1e30,
    }
    for _ in range(2):  # nor reused
        with initialize_config_dir(CONF, version_base=None):
            cfg = compose(
                "train",
                ["+experiment=demo", "student/init=random", f"teacher.path={path}", f"paths.runs={tmp_path}/runs"],
            )
            cfg.teacher.prepare = {**cfg.teacher.prepare, **steps}
            with pytest.raises(ConfigError, match=f"^teacher.path={path}: its training .* diverged"):
                ensure_teacher(cfg, complete)
        assert not path.exists()


def batches(module):
    rows = [{**module.tokenizer(text), "labels": i % 2} for i, text in enumerate(["all dogs run", "no cats sleep"] * 4)]
    return DataLoader(rows, batch_size=2, collate_fn=DataCollatorWithPadding(module.tokenizer))


def trainer(**settings):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return L.Trainer(accelerator="cpu", num_sanity_val_steps=0, **quiet, **settings)


def test_of_a_gang_the_diverged_student_alone_is_not_exported(teacher, tmp_path):
    module = StudentDistiller(teacher, [SMALL, WIDE], hidden_states())
    loader = batches(module)
    for parameter in module.students[1].model.parameters():
        parameter.data.fill_(math.inf)
    run = trainer(max_epochs=2, callbacks=[ExportModels(str(tmp_path / "model"))])
    run.fit(module, loader, loader)
    assert run.current_epoch == 2  # the other one goes on
    run.validate(module, loader, verbose=False)
    assert module.diverged == {1: "held-out loss nan in epoch 1"}
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["0"]
    with pytest.raises(DivergedError, match=r"the training of \[1, 2, 16, 16, gelu\] diverged: held-out loss nan"):
        module.refuse_diverged()


def test_a_trainee_that_has_diverged_stays_so_in_a_resumed_run(teacher, tmp_path):
    module = StudentDistiller(teacher, [SMALL, WIDE], hidden_states())
    module.diverged = {1: "held-out loss inf in epoch 1"}
    run = trainer(max_epochs=1)
    run.fit(module, batches(module))
    run.save_checkpoint(tmp_path / "last.ckpt")
    resumed = StudentDistiller(teacher, [SMALL, WIDE], hidden_states())
    resumed.on_load_checkpoint(torch.load(tmp_path / "last.ckpt", weights_only=True))
    assert resumed.diverged == module.diverged


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["loss", "logits", "weights"])
def test_any_number_that_is_not_finite_is_a_divergence(teacher, monkeypatch, part, value):
    if part == "loss":
        module = StudentDistiller(teacher, [SMALL], hidden_states())
        monkeypatch.setattr(module.students[0], "results", lambda: {"loss": value})
    else:
        module = FineTuner(Pretrained(teacher), classification(2))
        unused = module.tokenizer.mask_token_id  # a word that no text has
        weights = module.model.classifier.bias if part == "logits" else module.model.bert.embeddings.word_embeddings
        (weights if part == "logits" else weights.weight).data[unused if part == "weights" else 0] = value
    loader = batches(module)
    run = trainer(max_epochs=1)
    run.validate(module, loader, verbose=False)
    says = {
        "loss": f"held-out loss {value}",
        "logits": "held-out predictions not finite",
        "weights": "weights not finite",
    }
    assert module.diverged == {0: f"{says[part]} at the end"}


def test_a_training_loss_that_is_not_finite_is_a_divergence(teacher, monkeypatch):
    def step(module, *_):
        module.log("train/loss", torch.tensor(math.inf))
        return sum(parameter.sum() for parameter in module.students.parameters()) * 0  # and the weights stay finite

    monkeypatch.setattr(StudentDistiller, "training_step", step)
    module = StudentDistiller(teacher, [SMALL], hidden_states())
    trainer(max_epochs=1).fit(module, batches(module), batches(module))
    assert module.diverged == {0: "train loss inf in epoch 1"}


def test_the_glue_table_takes_a_diverged_run_for_one_that_has_not_finished(tmp_path):
    for seed, value in ((1, "0.75"), (2, "NaN"), (3, "Infinity")):
        folder = tmp_path / f"small/rte-{seed}"
        folder.mkdir(parents=True)
        (folder / "settings.json").write_text("{}")
        (folder / "results.json").write_text(f'[{{"accuracy": {value}}}]')
    tasks = {"rte": "accuracy"}
    runs = read(tmp_path, tasks)
    frame = table(runs, tasks, {}, None)
    assert frame["rte"].item() == 75 and frame["rte seeds"].item() == 1
    assert unfinished(runs, tasks) == ["small has not finished rte-2, rte-3"]


def test_the_study_hears_of_a_diverged_student_of_a_gang_and_of_the_others_rewards(teacher):
    told, failed = {}, {}
    study = SimpleNamespace(
        tell=lambda trial, reward, metrics, *_, **__: told.update({trial: reward}),
        fail=lambda trial, reason: failed.update({trial: reason}),
        split=lambda trials: None,
        teacher=None,
    )
    cost = Cost(1, 1, {})
    latency = SimpleNamespace(teacher=cost, students=[cost, cost], measure_again=lambda module: None)
    module = StudentDistiller(teacher, [SMALL, WIDE], hidden_states())
    module.students[0].model.embeddings.word_embeddings.weight.data[module.tokenizer.mask_token_id] = math.inf  # unused
    update = ControllerUpdate(study, [7, 8], lambda metrics, *_: -metrics["loss"], latency)
    trainer(callbacks=[update]).validate(module, batches(module), verbose=False)
    assert failed == {7: "diverged: weights not finite at the end"}
    assert told == {8: -module.results[1]["loss"]} and math.isfinite(told[8])
