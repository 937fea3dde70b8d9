"""The run's seams, from the outside: a Lightning callback of a user's, and a kind of job."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning import Callback
from optuna.trial import TrialState
from test_distiller import CONF
from test_functions import TINY

import kdnas
from kdnas.app.run import run
from kdnas.base.errors import ConfigError
from kdnas.costs.cost import Cost, Latency
from kdnas.models.architecture import Architecture
from kdnas.search.job import Job
from kdnas.search.journal import open_storage
from kdnas.search.schedule import Episodes
from kdnas.search.study import Study

STUDENT = Architecture(1, 2, 16, 32, "gelu")


def composed(name, teacher, folder, *words):
    """The built-in task in 4 steps an epoch."""
    base = [
        "+experiment=demo",
        "student/init=random",
        f"teacher.path={teacher}",
        "++teacher.prepare=null",
        "data.rows=40",
        "data.held_out=16",
    ]
    base += ["trainer.accelerator=cpu", "trainer.precision=32-true", "data.batch_size=8"]
    base += [f"architecture.{key}={value}" for key, value in STUDENT.to_dict().items()]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(name, [*base, f"paths.runs={folder}", f"paths.output={folder}/out", *words])
    cfg.latency = None
    return cfg


class Epochs(Callback):
    """A user's callback: counts epochs, also those of an earlier process, and is interrupted in one of them."""

    interrupted: int | None = None

    def __init__(self, path):
        self.path, self.epochs = path, 0

    def on_train_epoch_end(self, trainer, module):
        self.epochs += 1
        if self.epochs == Epochs.interrupted:
            raise KeyboardInterrupt

    def on_train_end(self, trainer, module):
        with open(self.path, "w") as file:
            file.write(f"{self.epochs} epochs of {len(module.trainees)}")

    def state_dict(self):
        return {"epochs": self.epochs}

    def load_state_dict(self, state):
        self.epochs = state["epochs"]


def sizes(cfg, job, study):
    """A kind of job that scores its trials by their numbers of weights, and trains nothing."""
    for number, architecture in zip(job.trials, job.architectures, strict=True):
        cost = Cost(architecture.size, 1, {"cpu": Latency(1.0, 0.1)})
        study.tell(number, -float(architecture.size) / cfg.unit, {"loss": 0.0}, cost)
    return {"loss": 0.0}


@pytest.mark.parametrize("students", [1, 2])
def test_a_users_callback_is_part_of_every_run_and_goes_on_with_it(students, teacher, tmp_path, monkeypatch):
    words = ["callbacks=learning_rate_monitor", f"+callbacks.mine._target_={__name__}.Epochs", "trainer.max_epochs=3"]
    words += [f"+callbacks.mine.path={tmp_path}/epochs", "trainer.log_every_n_steps=1"]
    words += [f"architectures=[{','.join(['${architecture}'] * students)}]"]
    monkeypatch.setattr(Epochs, "interrupted", 3)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(composed("train", teacher, tmp_path, *words))
    assert torch.load(tmp_path / "out/last.ckpt", weights_only=True)["epoch"] == 1  # the second
    monkeypatch.setattr(Epochs, "interrupted", None)
    with pytest.raises(ConfigError, match=r"^callbacks.mine.path=x: .*/out holds a run with .*; must be the same"):
        run(composed("train", teacher, tmp_path, *words, "callbacks.mine.path=x"))
    run(composed("train", teacher, tmp_path, *words))
    assert (tmp_path / "epochs").read_text() == f"3 epochs of {students}"
    assert "lr-AdamW" in (tmp_path / "out/metrics.csv").read_text().splitlines()[0]


def test_early_stopping_ends_a_candidate_too(teacher, tmp_path):
    words = ["callbacks=early_stopping", "+callbacks.early_stopping.min_delta=9", "callbacks.early_stopping.patience=1"]
    run(composed("train", teacher, tmp_path, *words, "job.kind=mini", "search.stages.mini.trainer.max_epochs=9"))
    assert len((tmp_path / "out/metrics.csv").read_text().splitlines()) < 9
    with pytest.raises(ConfigError, match=r"^callbacks: EarlyStopping would stop all students of a gang"):
        run(composed("train", teacher, tmp_path / "2", *words, "architectures=['${architecture}','${architecture}']"))
    with pytest.raises(ConfigError, match=r"^callbacks.x=1: must be a Lightning callback, by its _target_"):
        run(composed("train", teacher, tmp_path / "3", "+callbacks.x=1"))


class ThenSizes(Episodes):
    """Gives the best two candidates to the kind of job `sizes`."""

    def expected(self, settings):
        return super().expected(settings) | {"sizes": 2}

    def batches(self, search):
        yield from super().batches(search)
        for seen in search.best()[:2]:
            search.promote(seen, fidelity={"unit": 100}, kind="sizes")
        yield search.studies["sizes"].jobs()


def test_a_kind_of_job_from_the_outside_has_trials_in_a_search(teacher, tmp_path):
    """No candidate is trained: mini-KD is replaced by the same function."""
    words = [*TINY, f"teacher.path={teacher}", f"paths.runs={tmp_path}", f"search.dir={tmp_path}/search", "+unit=1"]
    words += [kind := f"+search.stages.sizes={{_target_:{__name__}.sizes,unit:1000}}", "search.candidates=4"]
    words += [f"search.stages.mini._target_={__name__}.sizes", f"search.schedule._target_={__name__}.ThenSizes"]
    words += ["search.episodes=1", "search.finalists=0"]
    kdnas.run_search(*words)
    storage = open_storage(tmp_path / "search")
    mini, own = Study(storage).observations, Study(storage, "sizes").trials(TrialState.COMPLETE)
    smallest = sorted(mini, key=lambda one: one.architecture.size)[:2]
    assert [trial.value for trial in own] == [-one.architecture.size / 100 for one in smallest]
    line = f"sizes 2 of 2, trial 1 {smallest[1].architecture}: loss 0.0000, 1.00 ms on cpu, reward {own[1].value:.4f}"
    assert line in (tmp_path / "search/search.log").read_text()
    kdnas.run_search(*words, "search.stages.sizes.unit=9")
    assert [len(Study(storage, kind).trials()) for kind in ("mini", "sizes")] == [4, 4]  # one has other settings now
    with pytest.raises(
        ConfigError, match="^search.stages: has no `sizes`; must have each kind of job of search.schedule"
    ):
        kdnas.run_search(*(word for word in words if word != kind))
    with pytest.raises(ConfigError, match="^job.kind=size: must be one of prepare, latency, mini, full, sizes"):
        run(composed("search", teacher, tmp_path, kind, "job.kind=size"))


def test_a_job_survives_the_command_line():
    job = Job("mini", (3, 1), (STUDENT, STUDENT), "search-1", {"trainer": {"max_time": "00:00:01:00"}, "seed": 2})
    assert Job.in_overrides(["seed=1", job.to_override(), "name=x"]) == job
    assert (job.name, job.title) == ("mini/0003+0001", "trial 1+3")
    with pytest.raises(ConfigError, match=r"^job.architectures=.*: must be one for each trial of \[0, 1\]"):
        Job.in_overrides([Job("mini", (0, 1), (STUDENT,)).to_override()])
