"""GLUE: settings of the papers, runs in folders of their own, and the table against numbers worked out by hand."""

import json
import logging
import math
import re
import shutil
import sys
from pathlib import Path

import matplotlib.image
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModel

from kdnas.app import command
from kdnas.app.run import run
from kdnas.base.config import instantiate, label
from kdnas.base.errors import ConfigError
from kdnas.base.identity import DECIDE
from kdnas.base.run_folder import earlier_results, note
from kdnas.datamodules import grammar
from kdnas.models.counting import count_parameters
from kdnas.reports.files import write_files
from kdnas.reports.glue.report import contents
from kdnas.reports.glue.runs import read, unfinished
from kdnas.reports.glue.table import MISSING, as_text, further_metrics, metrics, table
from kdnas.reports.plots import score_plot

ROOT = Path(__file__).parent.parent
TASKS = {"mnli": "accuracy", "cola": "matthews", "mrpc": "f1"}
ALL = ["mnli", "qqp", "qnli", "sst2", "cola", "stsb", "mrpc", "rte"]
NAN = pytest.approx(math.nan, nan_ok=True)


def composed(name, *overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose(name, list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg


# -- what is run


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (
            "kdnas_v2",
            {"cola": (2e-5, 10)} | dict.fromkeys(("mnli", "qqp", "qnli", "sst2", "stsb", "mrpc", "rte"), (2e-5, 3)),
        ),
        (
            "autodistil",
            {"cola": (1e-5, 20)}
            | dict.fromkeys(("mnli", "qnli", "qqp"), (2e-5, 5))
            | dict.fromkeys(("sst2", "mrpc", "rte", "stsb"), (2e-5, 10)),
        ),
    ],
)
def test_the_papers_settings(group, expected):
    for task, (rate, epochs) in expected.items():
        cfg = composed("train", "+experiment=glue", "model=x", f"task={task}", f"finetuning={group}")
        assert (cfg.module.learning_rate, cfg.data.batch_size, cfg.trainer.max_epochs) == (rate, 32, epochs)
        assert cfg.module.source.source == "x" and cfg.data.name == task
    assert set(expected) == set(ALL) == set(composed("evaluate").tasks)
    cfg = composed("train", "+experiment=glue", "model=x", "module.learning_rate=5e-5", "trainer.max_epochs=1")
    assert (cfg.module.learning_rate, cfg.trainer.max_epochs) == (5e-5, 1)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("runs/search/minilm/full/0003/model", "minilm-full-0003"),
        ("runs/distil/2026-01-31_10-00-00/best.ckpt", "runs-distil-2026-01-31_10-00-00"),
        ("google-bert/bert-base-uncased", "google-bert-bert-base-uncased"),
        ("/models/my model/", "models-my-model"),
        ("../model", "model"),
    ],
)
def test_a_label_is_made_of_the_path(model, name):
    assert label(model) == name and label(model, random=True) == f"{name}-random"


def test_every_model_task_and_seed_has_a_folder():
    words = ["+experiment=glue", "model=a/b", "task=cola", "seed=3"]
    for more, folder in (([], "a-b"), (["module.source.random=true"], "a-b-random"), (["label=mine"], "mine")):
        cfg = composed("train", *words, *more)
        assert cfg.hydra.run.dir == f"{cfg.hydra.sweep.dir}/{cfg.hydra.sweep.subdir}" == f"runs/glue/{folder}/cola-3"


HUB = {  # columns and held-out splits as nyu-mll/glue has them
    "mnli": ("premise", "hypothesis", "validation_matched", "validation_mismatched"),
    "stsb": ("sentence1", "sentence2", "validation"),
    "qqp": ("question1", "question2", "validation"),
    "qnli": ("question", "sentence", "validation"),
    "wnli": ("sentence1", "sentence2", "validation"),
}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """A few rows of some tasks, laid out as the hub does it."""
    folder, configs = tmp_path_factory.mktemp("glue"), []
    pairs = grammar.pairs(48, seed=3)
    for task, (one, other, *held_out) in HUB.items():
        labels = {"mnli": [0, 1, 2], "stsb": [0.0, 2.5, 5.0]}.get(task, [0, 1, 1])
        rows = [
            {one: p["premise"], other: p["hypothesis"], "label": labels[p["label"]], "idx": i}
            for i, p in enumerate(pairs)
        ]
        parts = {"train": rows[:24], **{name: rows[24 + 12 * i : 36 + 12 * i] for i, name in enumerate(held_out)}}
        for name, part in parts.items():
            (folder / f"{task}-{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        files = [{"split": name, "path": f"{task}-{name}.jsonl"} for name in parts]
        configs.append({"config_name": task, "data_files": files})
    (folder / "README.md").write_text(f"---\n{OmegaConf.to_yaml(OmegaConf.create({'configs': configs}))}---\n")
    return str(folder)


@pytest.mark.parametrize(
    ("task", "metrics"), [("qqp", {"f1", "accuracy"}), ("qnli", {"accuracy"}), ("wnli", {"accuracy"})]
)
def test_tasks_that_are_seldom_run(task, metrics, teacher, datasets, tmp_path):
    words = ["+experiment=glue", f"model={teacher}", f"task={task}", f"data.path={datasets}", "trainer.max_epochs=1"]
    words += ["trainer.accelerator=cpu", "data.max_length=64", f"paths.output={tmp_path}"]
    results = run(composed("train", *words))
    assert set(results) == metrics and all(0 <= value <= 1 for value in results.values())


def test_a_model_that_changed_behind_its_name_is_another(teacher, tmp_path):
    source = tmp_path / "model"
    shutil.copytree(teacher, source)
    config = OmegaConf.create({name: None for name in DECIDE} | {"module": {"source": {"source": str(source)}}})
    assert earlier_results(tmp_path / "run", config) is None and not (tmp_path / "run").exists()
    note(tmp_path / "run", config, "rows")
    (tmp_path / "run/results.json").write_text("[{}]")
    assert earlier_results(tmp_path / "run", config) == [{}]
    model = AutoModel.from_pretrained(source)
    model.embeddings.word_embeddings.weight.data[3, 3] += 1e-3
    model.save_pretrained(source)
    with pytest.raises(
        ConfigError, match=r"^module\.source\.source \(weights\)=\w{16}: .*run holds a run with \w{16};"
    ):
        earlier_results(tmp_path / "run", config)


def test_from_a_model_to_the_table(teacher, datasets, tmp_path, caplog, capsys):
    caplog.set_level(logging.INFO, "kdnas")

    def tune(task, seed, *more):
        words = ["+experiment=glue", f"model={teacher}", "label=tiny", f"task={task}", f"seed={seed}"]
        words += [f"data.path={datasets}", "trainer.max_epochs=2", "trainer.accelerator=cpu", "data.max_length=64"]
        return run(composed("train", *words, f"paths.output={tmp_path}/runs/tiny/{task}-{seed}", *more))

    found = {(task, seed): tune(task, seed) for task in ("mnli", "stsb") for seed in (1, 2)}
    assert all(set(found["mnli", seed]) == {"accuracy", "accuracy_mismatched"} for seed in (1, 2))
    assert all(set(found["stsb", seed]) == {"pearson", "spearman"} for seed in (1, 2))

    # The same again is not trained again; other settings are not mistaken for it.

    def written():
        files = (path for path in tmp_path.rglob("*.*") if path.is_file() and path.name != ".lock")
        return {path: path.stat().st_mtime_ns for path in files}

    before = written()
    assert tune("mnli", 1) == found["mnli", 1]
    assert "tiny mnli seed 1: already finished" in caplog.messages[-1]
    with pytest.raises(ConfigError, match=r"^module\.learning_rate=0\.1: .*mnli-1 holds a run with 2e-05"):
        tune("mnli", 1, "module.learning_rate=0.1")
    assert written() == before

    settings = [f"folder={tmp_path}/runs", f"paths.runs={tmp_path}", "latency.accelerators=[cpu]", "latency.repeats=1"]
    settings += [
        "latency.length=8",
        "teacher.label=tiny",
        *(f"tasks.{task}=null" for task in ("qqp", "qnli", "sst2", "cola")),
    ]
    instantiate(composed("evaluate", *settings, "tasks.mrpc=null", "tasks.rte=null").evaluation)
    row = pd.read_csv(tmp_path / "runs/report/table.csv").iloc[0]
    averages = [50 * (found["mnli", seed]["accuracy"] + found["stsb", seed]["pearson"]) for seed in (1, 2)]
    assert row["average"] == pytest.approx(sum(averages) / 2)
    assert row["average deviation"] == pytest.approx(abs(averages[0] - averages[1]) / math.sqrt(2))
    assert row["parameters (M)"] == count_parameters(AutoConfig.from_pretrained(teacher)) / 1e6
    assert row["speed-up cpu"] == 1 and row["latency cpu (ms)"] > 0
    assert "mnli" in capsys.readouterr().out


# -- the table


def add(folder, model, task, seed, **metrics):
    """A finished run; an unfinished one without metrics."""
    path = folder / model / f"{task}-{seed}"
    path.mkdir(parents=True)
    (path / "settings.json").write_text("{}")
    if metrics:
        (path / "results.json").write_text(json.dumps([metrics]))


@pytest.fixture
def runs(tmp_path):
    """Two whole models and one that lacks a run of CoLA."""
    folder = tmp_path / "glue"
    for model, scores in {
        "big": {"mnli": (0.8, 0.9), "cola": (0.5, 0.6), "mrpc": (0.9, 0.9)},
        "small": {"mnli": (0.6, 0.7), "cola": (0.1, 0.3), "mrpc": (0.8, 0.6)},
        "torn": {"mnli": (0.5, 0.6), "cola": (0.2, None), "mrpc": (0.7, 0.8)},
    }.items():
        for task, values in scores.items():
            for seed, value in enumerate(values, start=1):
                further = {"mnli": {"accuracy_mismatched": 0.25}, "mrpc": {"accuracy": 0.75}}.get(task, {})
                add(folder, model, task, seed, **({TASKS[task]: value} | further if value is not None else {}))
    add(folder, "small", "wnli", 1, accuracy=0.5)  # not among the tasks
    return folder


COSTS = {
    "big": {"parameters (M)": 100.0, "latency cpu (ms)": 40.0, "spread cpu (ms)": 1.0},
    "small": {"parameters (M)": 20.0, "latency cpu (ms)": 8.0, "spread cpu (ms)": 0.5},
}


def tabled(folder, tasks=TASKS, teacher="big"):
    return table(read(folder, tasks), tasks, COSTS, teacher).set_index("model")


def test_means_and_deviations_by_hand(runs):
    frame = tabled(runs)
    assert list(frame.index) == ["small", "torn", "big"]  # the teacher last
    small = frame.loc["small"]
    assert [small[task] for task in TASKS] == pytest.approx([65, 20, 70])
    # of two values, a sample deviation is their distance over the square root of 2
    deviations = [small[f"{task} deviation"] for task in TASKS]
    assert deviations == pytest.approx([10 / math.sqrt(2), 20 / math.sqrt(2), 20 / math.sqrt(2)])
    assert small["average"] == pytest.approx((65 + 20 + 70) / 3)
    assert small["average without cola"] == pytest.approx(67.5)
    # the seeds' averages: (60, 10, 80) is 50, (70, 30, 60) is 160 / 3; without CoLA 70 and 65
    assert small["average deviation"] == pytest.approx((160 / 3 - 50) / math.sqrt(2))
    assert small["average without cola deviation"] == pytest.approx(5 / math.sqrt(2))


def test_per_cent_of_the_teacher_and_its_speed(runs):
    frame = tabled(runs)
    assert frame.at["big", "average"] == pytest.approx((85 + 55 + 90) / 3)
    assert frame.at["small", "% of teacher"] == pytest.approx(100 * 155 / 230)
    assert frame.at["small", "% of teacher without cola"] == pytest.approx(100 * 135 / 175)
    assert frame.at["big", "% of teacher"] == 100
    assert (frame.at["small", "speed-up cpu"], frame.at["big", "speed-up cpu"]) == (5, 1)
    assert frame.loc["torn"][["parameters (M)", "latency cpu (ms)", "speed-up cpu"]].isna().all()
    alone = tabled(runs, teacher=None)
    assert not [name for name in alone if "teacher" in name or "speed-up" in name]


def test_a_mean_of_fewer_seeds_says_so(runs):
    torn = tabled(runs).loc["torn"]
    assert torn["cola"] == pytest.approx(20) and torn["cola deviation"] == NAN and torn["cola seeds"] == 1
    assert torn["average"] == pytest.approx((55 + 20 + 75) / 3) and torn["average deviation"] == NAN
    assert torn["average without cola deviation"] == pytest.approx(10 / math.sqrt(2))
    text = as_text(tabled(runs).reset_index(), TASKS).set_index("model").loc["torn"]
    assert text["cola"] == "20.0 (1 of 2)" and text["average"] == "50.0 (1 of 2)"
    assert text["average without cola"] == "65.0 ± 7.1" and text["cpu (ms)"] == MISSING
    assert unfinished(read(runs, TASKS), TASKS) == ["torn has not finished cola-2"]


def test_a_task_that_is_missing_leaves_no_average(runs):
    for path in (runs / "small").glob("mrpc-*/results.json"):
        path.write_text('[{"f1": 0.')  # cut short
    frame = tabled(runs)
    for name in ("mrpc", "average", "average without cola", "% of teacher"):
        assert frame.at["small", name] == NAN
    assert as_text(frame.reset_index(), TASKS).set_index("model").at["small", "average"] == MISSING
    lacking = ["small has not finished mrpc", "torn has not finished cola-2"]
    assert unfinished(read(runs, TASKS), TASKS) == lacking
    fewer = {"mnli": "accuracy", "cola": "matthews"}
    assert tabled(runs, fewer).at["small", "average"] == pytest.approx(42.5)


def test_a_single_seed_has_no_deviation(tmp_path):
    for task, metric in TASKS.items():
        add(tmp_path, "one", task, 7, **{metric: 0.5})
    frame = tabled(tmp_path, teacher=None)
    assert frame.at["one", "average"] == 50 and frame.filter(like="deviation").isna().all(axis=None)
    assert as_text(frame.reset_index(), TASKS)["average"].item() == "50.0"


def test_another_metric_can_stand_for_a_task(runs):
    frame = tabled(runs, TASKS | {"mrpc": "accuracy", "mnli": "accuracy_mismatched"})
    assert frame.at["small", "average"] == pytest.approx((25 + 20 + 75) / 3)


def test_every_metric_is_summarized(runs):
    every = metrics(read(runs, TASKS)).set_index(["model", "task", "metric"])
    assert list(every.loc["small", "mnli", "accuracy_mismatched"]) == [25, 0, 2]
    assert every.loc["torn", "cola", "matthews"]["mean"] == pytest.approx(20)
    rest = further_metrics(every.reset_index(), TASKS)
    assert list(rest) == ["model", "mnli accuracy_mismatched", "mrpc accuracy"]
    assert list(rest.iloc[0])[1:] == ["25.0 ± 0.0", "75.0 ± 0.0"]


def test_what_is_written(runs, tmp_path):
    frame, every = tabled(runs).reset_index(), metrics(read(runs, TASKS))
    written = write_files("output", tmp_path / "out", contents(frame, every, TASKS, "big", ["a note"]))
    assert [path.name for path in written] == ["table.csv", "metrics.csv", "table.md", "tradeoff.png"]
    pd.testing.assert_frame_equal(pd.read_csv(written[0]), frame, check_dtype=False)
    pd.testing.assert_frame_equal(pd.read_csv(written[1]), every, check_dtype=False)
    lines = written[2].read_text().splitlines()
    cells = [re.split(r"\s*\|\s*", line)[1:-1] for line in lines if line.startswith("|")]
    assert cells[2][:5] == ["small", "20.0", "8.00", "5.0x", "65.0 ± 7.1"] and lines[-1] == "a note"
    assert matplotlib.image.imread(written[3]).std() > 0

    # Nothing to draw, and no plot of an earlier table left.
    frame = frame.assign(average=math.nan)
    written = write_files("output", tmp_path / "out", contents(frame, every, TASKS, "big", []))
    assert "tradeoff.png" not in [path.name for path in (*written, *(tmp_path / "out").iterdir())]


def test_the_plot_shows_each_model_at_its_place(runs):
    figure = score_plot(tabled(runs).reset_index(), ["cpu"], "big", "average")
    axes = figure.axes[0]
    places = [tuple(place) for dots in axes.collections for place in getattr(dots, "get_offsets", list)() if len(place)]
    assert (8, pytest.approx(155 / 3)) in places and (40, pytest.approx(230 / 3)) in places
    assert {text.get_text() for text in axes.texts} == {"big", "small"}  # "torn" has no latency


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["folder=/no/such/runs"], "folder=/no/such/runs: holds no finished run of mnli, qqp"),
        (["teacher.label=huge"], "teacher.label=huge: must be one of big, small, torn"),
        (["tasks.mnli=f1"], "tasks.mnli=f1: not a metric of"),
        (["output=/proc/kdnas"], "output=/proc/kdnas: cannot be written to"),
        ([f"tasks.{task}=null" for task in ALL], "tasks: must name"),
    ],
)
def test_wrong_input_is_refused(runs, overrides, says):
    with pytest.raises(ConfigError) as caught:
        instantiate(composed("evaluate", f"folder={runs}", "~latency", *overrides).evaluation)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_the_command_ends_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "glue", f"folder={tmp_path}", "~latency"])
    with pytest.raises(SystemExit, match=f"^error: folder={tmp_path}: holds no finished run") as caught:
        command.evaluate()
    assert "\n" not in str(caught.value)
