"""The Trainer's arguments: used, or refused in one line before anything is read."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Trainer
from test_distiller import CONF
from torch import nn

from kdnas.app.run import run
from kdnas.base.errors import ConfigError
from kdnas.modules.base import ExportingModule
from kdnas.training.arguments import REFUSED, check_arguments

STOP = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss, min_delta: 5, patience: 1}"
CHEAP = ["latency.accelerators=[cpu]", "latency.repeats=1", "latency.runs=1", "latency.warmup=0"]
STUDENT = ["architecture.num_hidden_layers=2", "architecture.num_attention_heads=2", "architecture.hidden_size=16"]


def composed(teacher, folder, *words):
    base = [
        "+experiment=demo",
        "student/init=random",
        f"teacher.path={teacher}",
        "++teacher.prepare=null",
        *STUDENT,
        *CHEAP,
    ]
    base += ["architecture.intermediate_size=32", "data.rows=40", "data.held_out=16", "trainer.accelerator=cpu"]
    base += ["trainer.precision=32-true", f"paths.runs={folder}", f"paths.output={folder}/out", "data.batch_size=8"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [*base, *words])


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("+trainer.limit_val_batches=0", "trainer.limit_val_batches=0: must be a number of batches from 1, or a share"),
        ("+trainer.limit_train_batches=0.0", "trainer.limit_train_batches=0.0: must be a number of batches from 1"),
        ("+trainer.limit_train_batches=1.5", "trainer.limit_train_batches=1.5: must be"),
        ("+trainer.logger=false", "trainer.logger=false: must be left out; the group `logger` makes it"),
        ("+trainer.plugins=[x]", "trainer.plugins=['x']: must be left out"),
        ("+trainer.reload_dataloaders_every_n_epochs=2", "trainer.reload_dataloaders_every_n_epochs=2: must be left"),
        ("+trainer.enable_checkpointing=false", "trainer.enable_checkpointing=false: must be left out"),
        ("+trainer.overfit_batches=0.1", "trainer.overfit_batches=0.1: must be left out"),
        ("+trainer.fast_dev_run=true", "trainer.fast_dev_run=true: must be left out"),
        ("+trainer.barebones=true", "trainer.barebones=true: must be left out"),
        ("+trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch=0: must be a whole number from 1"),
        ("+trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0: must be a whole number from 1"),
        ("+trainer.enable_progress_bar=no_", "trainer.enable_progress_bar=no_: must be true or false"),
        ("+trainer.min_epochs=3", "trainer.min_epochs=3: must be at most trainer.max_epochs=1"),
        ("trainer.max_epochs=null", "trainer.max_epochs=null: must be a number, or trainer.max_steps be one"),
        ("trainer.max_epochs=-1", "trainer.max_epochs=-1: must be a number, or trainer.max_steps be one"),
        ("+trainer.gradient_clip_algorithm=median", "trainer: `gradient_clip_algorithm` median is invalid"),
        ("trainer.max_time=soon", "trainer"),
        ("+trainer.callbacks=3", "trainer.callbacks=3: must be a list of callbacks"),
        ("+trainer.callbacks=[x]", "trainer.callbacks=['x']: must be a list of callbacks"),
        (
            f"+trainer.callbacks=[{STOP.replace('val/loss', 'val/f1')}]",
            "callbacks: EarlyStopping: monitor=val/f1: not logged; there is train/loss",
        ),
        ("+trainer.profiler=simple & profile=true", "trainer.profiler=simple: must be left out with profile=true"),
        ("+trainer.val_check_interval=1000", "trainer: `val_check_interval` (1000) must be less than or equal to the"),
    ],
)
def test_an_argument_without_use_is_refused(word, says, teacher, tmp_path):
    with pytest.raises(ConfigError) as caught:
        run(composed(teacher, tmp_path, *word.split(" & ")))
    assert says in str(caught.value) and str(caught.value).isprintable()
    assert not (tmp_path / "out/results.json").exists()


def test_every_refused_argument_is_one_of_lightnings():
    Trainer(logger=False, enable_checkpointing=False, **{name: None for name in REFUSED if name[:4] == "limi"})
    for name, (harmless, _) in REFUSED.items():
        for value in harmless:
            Trainer(**{"logger": False, name: value})


def test_early_stopping_stops_and_stays_stopped(teacher, tmp_path, caplog, capsys):
    words = ["trainer.max_epochs=6", f"+trainer.callbacks=[{STOP}]", "+trainer.enable_progress_bar=false"]
    result = run(composed(teacher, tmp_path, *words))
    saved = torch.load(tmp_path / "out/last.ckpt", weights_only=True)
    assert saved["epoch"] == 1  # the second of six
    (tmp_path / "out/results.json").unlink()  # as if it had been killed before it was written
    assert run(composed(teacher, tmp_path, *words)) == pytest.approx(result)
    assert torch.load(tmp_path / "out/last.ckpt", weights_only=True)["epoch"] == 1
    assert capsys.readouterr().out == "" and not [record for record in caplog.records if "epoch" in record.getMessage()]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["objective=xtremedistil", "task=demo", "trainer.max_epochs=null", "~objective.normalize"],
            "in its first stage",
        ),
        ([f"architectures=[{','.join(2 * ['${architecture}'])}]"], "all students of a gang by their mean"),
    ],
)
def test_early_stopping_is_refused_where_it_would_stop_too_much(words, says, teacher, tmp_path):
    with pytest.raises(ConfigError, match=f"^callbacks: EarlyStopping would .*{says}"):
        run(composed(teacher, tmp_path, *words, f"+trainer.callbacks=[{STOP}]"))


@pytest.mark.parametrize("algorithm", [None, "norm", "value"])
def test_each_trainee_is_clipped_by_itself(algorithm):
    trainees = [nn.Linear(3, 2, bias=False) for _ in range(2)]
    gradients = [torch.tensor([[3.0, -4.0, 0.1], [0.0, 0.0, 0.0]]), torch.full((2, 3), 0.2)]
    for trainee, gradient in zip(trainees, gradients, strict=True):
        trainee.weight.grad = gradient.clone()
    module = type("Two", (), {"trainees": trainees})()
    ExportingModule.configure_gradient_clipping(module, None, 1.0, algorithm)
    by_norm = gradients[0] / gradients[0].norm()
    expected = gradients[0].clamp(-1, 1) if algorithm == "value" else by_norm
    torch.testing.assert_close(trainees[0].weight.grad, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(trainees[1].weight.grad, gradients[1])


def test_what_is_used_passes(teacher, tmp_path):
    used = ["val_check_interval=0.5", "num_sanity_val_steps=1", "accumulate_grad_batches=2", "inference_mode=false"]
    used += ["limit_train_batches=0.9", "limit_val_batches=1", "gradient_clip_algorithm=value", "profiler=simple"]
    used += ["detect_anomaly=true", "deterministic=true", "min_epochs=1", "use_distributed_sampler=false"]
    cfg = composed(teacher, tmp_path, *(f"++trainer.{word}" for word in used))
    check_arguments(cfg.trainer)
    try:
        assert run(cfg)["loss"] > 0
    finally:
        torch.use_deterministic_algorithms(False)
