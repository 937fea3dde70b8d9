"""A run's folder: one run at a time, and another run is told by its content."""

import json
import shutil
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.utils import JobReturn, JobStatus
from labelled import labelled
from omegaconf import OmegaConf
from test_distiller import CONF

from kdnas.app.command import Command
from kdnas.app.multirun import Gathering, tidy
from kdnas.app.run import run as start
from kdnas.app.suggestions import distillation_overrides
from kdnas.app.teacher import ensure_teacher
from kdnas.app.training import complete
from kdnas.base.config import flatten, plain
from kdnas.base.errors import ConfigError
from kdnas.base.identity import COMPARED, first_difference, identity, stamp, weights
from kdnas.base.run_folder import LOCK, at_work
from kdnas.costs.cost import Cost
from kdnas.datamodules import grammar
from kdnas.models.architecture import Architecture
from kdnas.models.loading import load_tokenizer
from kdnas.search.job import named, spans
from kdnas.search.journal import open_storage
from kdnas.search.study import Study

STUDENT = ["architecture.num_hidden_layers=1", "architecture.num_attention_heads=2", "architecture.hidden_size=16"]
CHEAP = ["latency.accelerators=[cpu]", "latency.repeats=1", "latency.runs=1", "latency.warmup=0", "latency.length=16"]


def composed(teacher, data, folder, *words):
    base = ["data=wikipedia", "data.sentences=false", "data.columns=[premise]", f"data.path={data}", "data.name=null"]
    base += [f"teacher.path={teacher}", *STUDENT, "architecture.intermediate_size=32", *CHEAP, "trainer.max_epochs=1"]
    base += ["trainer.accelerator=cpu", "trainer.precision=32-true", "data.max_length=32", "data.batch_size=16"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [*base, f"paths.runs={folder}", f"paths.output={folder}/out", *words])


def test_a_folder_is_one_runs_at_a_time_until_its_process_dies(tmp_path):
    code = "import time; from pathlib import Path; from kdnas.base.run_folder import at_work\n"
    code += f"with at_work(Path('{tmp_path}/a/b')): print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        refused = pytest.raises(ConfigError, match=r"^paths.output=.*/a/b: another run is at work there")
        with refused, at_work(tmp_path / "a/b"):
            pass
        other.kill()
    with at_work(tmp_path / "a/b"):
        (tmp_path / "a/b/last.ckpt").write_text("something")
    assert (tmp_path / "a/b" / LOCK).is_file()
    with pytest.raises(ConfigError, match="refused"), at_work(tmp_path / "c/d"):  # which leaves nothing
        raise ConfigError("refused")
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


def test_content_decides_and_not_names(teacher, text_dataset, tmp_path, caplog):
    caplog.set_level("INFO", "kdnas")
    data, model = tmp_path / "data", tmp_path / "model"
    shutil.copytree(text_dataset, data)
    shutil.copytree(teacher, model)

    def run(*words):
        caplog.clear()
        result = start(composed(model, data, tmp_path, *words))
        return result, any("already finished" in record.getMessage() for record in caplog.records)

    first, known = run()
    assert not known and run() == (first, True)
    data.rename(tmp_path / "moved")
    shutil.copytree(teacher, tmp_path / "copy")
    words = [f"data.path={tmp_path}/moved", f"teacher.path={tmp_path}/copy", "trainer.log_every_n_steps=7"]
    assert run(*words) == (first, True)
    rows = (tmp_path / "moved/train.jsonl").read_text().splitlines()
    data.mkdir()
    shutil.copy(tmp_path / "moved/validation.jsonl", data)
    (data / "train.jsonl").write_text("\n".join([rows[0].replace("a", "e"), *rows[1:]]) + "\n")
    with pytest.raises(ConfigError, match=r"^data \(rows\)=\w+: .*out holds a run with \w+; must be the same"):
        run()
    with pytest.raises(ConfigError, match=r"^seed=1: .*out holds a run with 0"):
        run("seed=1")


def test_labels_are_content(teacher, text_dataset, tmp_path):
    digests = []
    for change in (0, 0, 1):
        folder = tmp_path / f"data{len(digests)}"
        shutil.copytree(text_dataset, folder)
        rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
        rows[0]["label"] = (rows[0]["label"] + change) % 3
        (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
        tokenizer = load_tokenizer(teacher)
        data = labelled(str(folder), ["premise", "hypothesis"], num_labels=3, proxy=0.5, tokenizer=tokenizer)
        data.setup()
        digests.append(data.digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_models_config_is_content_and_its_hub_id_a_name(teacher, tmp_path, monkeypatch):
    shutil.copytree(teacher, tmp_path / "copy")
    config = json.loads((tmp_path / "copy/config.json").read_text())
    (tmp_path / "copy/config.json").write_text(json.dumps(config | {"_name_or_path": "elsewhere"}))
    assert weights(str(tmp_path / "copy")) == weights(teacher) != None  # noqa: E711
    cached = lambda name, file: f"{teacher}/{file}" if name == "a/b" else None  # noqa: E731
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    assert weights("a/b") == weights(teacher) and weights("c/d") is None
    (tmp_path / "copy/config.json").write_text(json.dumps(config | {"num_attention_heads": 2}))
    assert weights(str(tmp_path / "copy")) != weights(teacher)


@pytest.mark.parametrize("space", ["small", "within_teacher"])
def test_a_search_goes_on_with_a_teacher_that_was_moved(space, teacher, tmp_path):
    shutil.copytree(teacher, tmp_path / "moved")
    words = ["+experiment=minilm", f"space={space}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfgs = [compose("search", [*words, f"teacher.path={path}"]) for path in (teacher, tmp_path / "moved")]
        cfgs.append(compose("search", [*words, "teacher.path=other/teacher"]))
    here, moved, other = (identity(cfg, None, COMPARED) for cfg in cfgs)
    assert first_difference(here, moved) is None and str(first_difference(here, other)).startswith("module.teacher")


def test_a_stamp_sees_files(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    before = stamp({"data.path": str(tmp_path)})
    assert stamp({"data.path": str(tmp_path)}) == before
    (tmp_path / "a.txt").write_text("ab")
    assert stamp({"data.path": str(tmp_path)}) != before


@pytest.mark.parametrize(
    ("numbers", "folder", "title"),
    [
        ([3], "0003", "3"),
        ([0, 1, 2], "0000+0001+0002", "0-2"),
        (range(60), "0000-0059", "0-59"),
        ([*range(30), *range(31, 61), 70, 72], "0000-0029+0031-0060+0070+0072", "0-29+31-60+70+72"),
    ],
)
def test_a_gangs_names_stay_short(numbers, folder, title):
    assert (named(numbers), spans(numbers)) == (folder, title)
    gaps = range(0, 2 * 500, 2)
    assert len(named(gaps)) < 100 and named(gaps) != named([*gaps, 1001])


def test_what_finalists_get_is_in_the_command_that_distils_again():
    words = ["+experiment=demo", "data.proxy=0.1", "search.episodes=3", "space.hidden_size=[16]", "reward=parameters"]
    words += ["+search.stages.full.trainer.max_epochs=5", "search.stages.full.data.proxy=0.9", "~latency"]
    full = {"_target_": "x", "data": {"proxy": 0.9}, "trainer": {"max_epochs": 5}}
    again = distillation_overrides(words, OmegaConf.create({"search": {"stages": {"full": full}}}))
    assert again == ["+experiment=demo", "++trainer.max_epochs=5", "search.stages.full.data.proxy=0.9", "~latency"]


def test_every_job_that_fails_gets_its_line(tmp_path):
    class Launcher:
        def launch(self, jobs, initial_job_idx):
            errors = [ConfigError("seed=-1: must be"), None, RuntimeError("two\nlines")]
            statuses = [JobStatus.COMPLETED if error is None else JobStatus.FAILED for error in errors]
            return [JobReturn(status=s, _return_value=e) for s, e in zip(statuses, errors, strict=True)]

    gathering = Gathering(Launcher())
    assert len(gathering.launch([["a=1", f"seed={seed}"] for seed in (-1, 0, 1)], initial_job_idx=4)) == 1
    assert gathering.failed == ["job 4 (seed=-1): seed=-1: must be", "job 6 (seed=1): RuntimeError: two lines"]
    (tmp_path / "x/sweep").mkdir(parents=True)
    (tmp_path / "x/sweep/multirun.yaml").write_text("")
    tidy(tmp_path / "x/sweep")
    assert not (tmp_path / "x").exists()


def test_a_run_that_finds_another_at_work_leaves_its_files_alone(tmp_path, monkeypatch):
    """`hydra.run.dir` may be one folder for two runs: that of the first, which has written nothing yet."""

    def task(cfg):
        with at_work(tmp_path), at_work(tmp_path):
            raise AssertionError("two runs are at work")

    monkeypatch.setattr(sys, "argv", ["train.py", "+experiment=demo", f"hydra.run.dir={tmp_path}"])
    with pytest.raises(SystemExit, match="another run is at work there"):
        Command("train", task)()
    assert (tmp_path / ".hydra/config.yaml").is_file() and (tmp_path / LOCK).is_file()


def test_trials_count_again_when_the_settings_are_as_before(tmp_path):
    study = Study(open_storage(tmp_path), "full")
    counted = []
    for rate in (1e-3, 1e-4, 1e-3):
        study.count_only({"module.learning_rate": rate})
        if rate not in [trial.user_attrs["rate"] for trial in study.counted()]:
            about = {"episode": 0, "origin": "random", "rate": rate}
            study.add(Architecture(1, 2, 8, 16, "gelu"), about)
            study.tell(len(study.trials()) - 1, rate, {"loss": 1.0}, Cost(1, 1, {}))
        counted.append([seen.trial for seen in study.observations])
    assert counted == [[0], [1], [0]]


@pytest.mark.parametrize("words", [[], ["data.also={again: validation}", "data.batch_tokens=128", "data.held_out=9"]])
def test_a_teacher_is_trained_on_its_students_data(words, teacher, text_dataset, tmp_path):
    other = tmp_path / "data"
    shutil.copytree(text_dataset, other)
    base = ["+experiment=mnli", "teacher.source=" + teacher, f"data.path={other}", "data.name=null", "teacher.epochs=1"]
    base += ["data.validation=validation", "data.also=null", "data.max_length=32", *STUDENT, *CHEAP]
    more = tmp_path / "more"
    more.mkdir()
    (more / "train.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in grammar.pairs(9, seed=6)))
    base += [f"data.extra=[{{path: {more}, columns: [premise, hypothesis], label: null}}]"]
    base += [
        "trainer.accelerator=cpu",
        "trainer.precision=32-true",
        f"paths.runs={tmp_path}",
        f"paths.output={tmp_path}/out",
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*base, *words])
        ensure_teacher(cfg, complete)
        noted = json.loads(next(tmp_path.glob("teachers/*.training/settings.json")).read_text())
        for name in ("batch_tokens", "held_out", "max_length"):
            assert noted[f"data.{name}"] == flatten({"x": plain(cfg.data[name])})["x"]
        assert noted["data.seed"] == 0 and noted["data.proxy"] == 1
        (figures,) = json.loads(next(tmp_path.glob("teachers/*.training/results.json")).read_text())
        assert ("accuracy_again" in figures) == bool(words)
        rows = (other / "train.jsonl").read_text()
        (other / "train.jsonl").write_text(rows.partition("\n")[2])
        with pytest.raises(ConfigError, match=r"^teacher.path=.*: holds a teacher trained with data \(rows\)="):
            ensure_teacher(cfg, complete)
        (other / "train.jsonl").write_text(rows)
        ensure_teacher(cfg, complete)
