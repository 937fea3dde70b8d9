"""KD-NAS for one task through the commands that people type, from an empty folder, and through a real kill."""

import json
import signal
import time

import pandas as pd
import pytest
import torch
from forked import Forked, run
from labelled import load_classifier
from transformers import AutoModelForSequenceClassification

from kdnas.datamodules import grammar
from kdnas.search.journal import open_storage
from kdnas.search.study import Study

pytestmark = pytest.mark.long

STAGES = ("representation", "logits", "labels")
ARCHITECTURE = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "hidden_act": "gelu",
}


@pytest.fixture(scope="module")
def settings(teacher, teach, tmp_path_factory):
    """+experiment=mnli on the grammar's pairs, laid out as MNLI is; the teacher is a random encoder, fine-tuned.

    Its classifier knows the held-out pairs already: what there is time to train would leave it at chance.
    """
    folder, source = tmp_path_factory.mktemp("mnli"), str(tmp_path_factory.mktemp("source"))
    pairs = grammar.pairs(700, seed=8)
    parts = {"train": pairs[:600], "validation_matched": pairs[600:650], "validation_mismatched": pairs[650:]}
    for name, rows in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, tokenizer = load_classifier(teacher, 3)
    teach(model, tokenizer, pairs[600:650])
    model.save_pretrained(source)
    tokenizer.save_pretrained(source)
    files = "".join(f"  - split: {name}\n    path: {name}.jsonl\n" for name in parts)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: mnli\n  data_files:\n{files}---\n")
    small = [f"data.path={folder}", "data.max_length=64", "latency.accelerators=[cpu]", "latency.length=16"]
    small += ["latency.patience=0", "latency.repeats=3"]
    small += [f"teacher.source={source}", "teacher.name=tiny", "teacher.epochs=1"]
    small += ["trainer.precision=32-true"]  # in bf16, what the random teacher has learned is lost
    for stage in STAGES:
        small += [f"{prefix}objective.{stage}.epochs=2" for prefix in ("", "search.stages.mini.")]
        small += [f"objective.{stage}.learning_rate=1e-3"]
    return ["+experiment=mnli", *small]


def command(script, folder, *overrides):
    return [script, *overrides, f"paths.runs={folder}"]


def test_the_whole_of_the_experiment_from_an_empty_folder(settings, tmp_path):
    space = ["space.num_hidden_layers=[1,2]", "space.num_attention_heads=[2]", "space.hidden_size=[8,16]"]
    space += ["space.intermediate_size=[16,32]", "space.hidden_act=[gelu]"]
    size = ["search.episodes=2", "search.candidates=3", "search.finalists=2", "search.gang=3"]
    searched = run(command("search.py", tmp_path, *settings, *space, *size))
    assert searched.returncode == 0, searched.stdout + searched.stderr
    table = pd.read_csv(tmp_path / "search/mnli/report/table.csv")
    found = table[table["model"] == "candidate"]
    finalists = found.dropna(subset="export")
    assert len(finalists) == 2
    for name in ("held-out accuracy", "held-out accuracy_mismatched", "reward"):
        assert found[name].between(0.1, 1.5).all()
    assert finalists["full held-out accuracy_mismatched"].between(0.1, 1).all()
    of_teacher = json.loads((tmp_path / "teachers/tiny_mnli.training/results.json").read_text())[0]
    row = table[table["model"] == "teacher"]
    assert row["full held-out accuracy"].item() == pytest.approx(of_teacher["accuracy"])
    # Eq. 5, from the study's own figures; of a busy host, each job has estimates of its own
    study = Study(open_storage(tmp_path / "search/mnli"))
    teacher, seen = study.teacher.latency["cpu"].median, study.observations
    ours = [one.metrics["accuracy"] * (one.cost.latency["cpu"].median / (0.6 * teacher)) ** -0.06 for one in seen]
    assert [one.reward for one in seen] == pytest.approx(ours, rel=0.1 if study.busy else 1e-3)
    for folder in finalists["export"]:
        assert AutoModelForSequenceClassification.from_pretrained(folder).config.num_labels == 3
    kept = tmp_path / "teachers/tiny_mnli/model.safetensors"
    made = kept.stat().st_mtime_ns
    winner = ["architecture=from_search", f"search.dir={tmp_path}/search/mnli"]
    again = run(command("train.py", tmp_path, *settings, *winner))
    assert again.returncode == 0, again.stdout + again.stderr
    assert kept.stat().st_mtime_ns == made
    other = run(command("train.py", tmp_path, *settings, "teacher.epochs=2"))
    assert (
        other.returncode == 1
        and "holds a teacher trained with trainer.max_epochs=1, not 2" in other.stderr
        and kept.stat().st_mtime_ns == made
    )


def test_a_process_killed_in_the_second_stage_ends_as_if_it_had_not_been(settings, tmp_path):
    five = [f"architecture.{name}={value}" for name, value in ARCHITECTURE.items()]

    def distil(folder):
        return command("train.py", tmp_path, *settings, *five, f"paths.output={tmp_path / folder}")

    def finish(folder):
        done = run(distil(folder))
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("going on from" in done.stdout) == (folder == "cut")
        return torch.load(tmp_path / folder / "best.ckpt", weights_only=True)["state_dict"]

    whole = finish("whole")
    log = tmp_path / "cut.log"
    with log.open("w") as file:
        process = Forked(distil("cut"), file, file)
    while "stage 2/3 logits, epoch 3" not in log.read_text():  # of epochs 3 and 4
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut/results.json").exists()
    cut = finish("cut")
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)
