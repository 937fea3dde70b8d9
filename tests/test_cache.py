"""The teacher's outputs, kept in memory and on disk, against the teacher itself."""

import logging
import os
import threading
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from test_distiller import CONF, SMALL, distiller
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from kdnas.app import run as runner
from kdnas.base import shared
from kdnas.base.errors import ConfigError
from kdnas.datamodules import TextDataModule
from kdnas.distillation import cache as kept
from kdnas.distillation.cache import DiskOutputs, MemoryOutputs
from kdnas.distillation.teacher import OnlineTeacher, Teacher
from kdnas.models.features import LOGITS, Per, hidden_state
from kdnas.models.heads import Classifier, Encoder
from kdnas.models.loading import load_config

CPU = torch.device("cpu")
FIRST = hidden_state(3, Per.FIRST_TOKEN)
STATES = {layer: hidden_state(layer) for layer in (1, 2, 4)}
FEATURES = frozenset({STATES[1], STATES[4], FIRST})


@pytest.fixture(autouse=True)
def nothing_shared(monkeypatch):
    monkeypatch.setattr(shared, "_kept", {})


@pytest.fixture
def data(teacher, text_dataset):
    return data_of(teacher, text_dataset)


def data_of(teacher, path, **settings):
    columns = ["premise", "hypothesis"]
    settings = {"validation": "validation", "batch_size": 7} | settings
    data = TextDataModule(path, columns, tokenizer=AutoTokenizer.from_pretrained(teacher), **settings)
    data.setup("fit")
    return data


def known(path, head=None, precision="32-true"):
    context = nullcontext if precision == "32-true" else partial(torch.autocast, "cpu", torch.bfloat16)
    return Teacher(path, head or Encoder(), load_config(path), precision, context)


def forms(folder):
    return {"memory": MemoryOutputs(1), "disk": DiskOutputs(str(folder), 1)}


def by_hand(model, batch):
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.no_grad():
        return model(**inputs, output_hidden_states=True), batch["attention_mask"].bool()


def sizes(folder):
    return {path.name: path.stat().st_size for path in Path(folder).glob("*/*") if path.name != ".lock"}


@pytest.mark.parametrize("form", ["memory", "disk"])
def test_what_is_kept_is_what_the_teacher_says(form, teacher, data, tmp_path):
    model = AutoModel.from_pretrained(teacher).eval()
    asked = forms(tmp_path)[form].open(known(teacher), data.corpus, FEATURES, CPU)
    seen = 0
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for batch in loader:
            given, (said, real) = asked(batch, FEATURES), by_hand(model, batch)
            expected = {STATES[layer]: said.hidden_states[layer][real] for layer in (1, 4)}
            expected[FIRST] = said.hidden_states[3][:, 0]
            for feature, values in expected.items():  # bf16 has 8 bits
                torch.testing.assert_close(given[feature].float(), values, rtol=2**-8, atol=1e-6)
            seen += len(batch["rows"])
    assert seen == data.corpus.rows == 80


@pytest.mark.parametrize("form", ["memory", "disk"])
def test_logits_are_kept_as_they_are(form, teacher, data, tmp_path):
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(teacher, num_labels=3).save_pretrained(tmp_path / "t")
    AutoTokenizer.from_pretrained(teacher).save_pretrained(tmp_path / "t")
    path = str(tmp_path / "t")
    asked = forms(tmp_path / "o")[form].open(known(path, Classifier(3)), data.corpus, {LOGITS}, CPU)
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    for batch in data.train_dataloader():
        given, (said, _) = asked(batch, {LOGITS}), by_hand(model, batch)
        torch.testing.assert_close(given[LOGITS], said.logits, rtol=1e-5, atol=1e-6)
        assert set(given) == {LOGITS}


def test_files_are_of_real_tokens_alone_and_are_used_again(teacher, data, tmp_path, monkeypatch):
    forms(tmp_path)["disk"].open(known(teacher), data.corpus, FEATURES, CPU)
    tokens = sum(len(ids) for rows in (data.train, data.validation) for ids in rows["input_ids"])
    state = tokens * 16 * 2
    assert sizes(tmp_path) == {STATES[1].name: state, STATES[4].name: state, FIRST.name: 80 * 16 * 2}

    monkeypatch.setattr(Teacher, "load", None)  # nobody needs it any more
    again = forms(tmp_path)["disk"].open(known(teacher), data.corpus, {STATES[4]}, CPU)
    assert set(again.cached) == {STATES[4]}


def test_a_layer_that_is_missing_is_added(teacher, data, tmp_path, monkeypatch):
    forms(tmp_path)["disk"].open(known(teacher), data.corpus, FEATURES, CPU)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/[!.]*")}
    asked, fill = [], kept.fill
    monkeypatch.setattr(kept, "fill", lambda parts, *given: (asked.append(sorted(parts)), fill(parts, *given)))
    forms(tmp_path)["disk"].open(known(teacher), data.corpus, FEATURES | {STATES[2]}, CPU)
    assert asked == [[STATES[2]]]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


@pytest.mark.parametrize("change", ["rows", "weights", "precision", "head"])
def test_others_are_kept_elsewhere(change, teacher, roberta_teacher, text_dataset, data, tmp_path):
    forms(tmp_path)["disk"].open(known(teacher), data.corpus, FEATURES, CPU)
    path, corpus, settings = teacher, data.corpus, {}
    if change == "rows":
        corpus = data_of(teacher, text_dataset, max_length=8).corpus
    elif change == "weights":
        model = AutoModel.from_pretrained(teacher)
        model.encoder.layer[0].output.dense.bias.data += 1
        model.save_pretrained(path := str(tmp_path / "t"))
    else:
        settings = {"precision": "bf16-mixed"} if change == "precision" else {"head": Encoder()}
    forms(tmp_path)["disk"].open(known(path, **settings), corpus, FEATURES, CPU)
    folders = {part.parent for part in tmp_path.glob(f"*/{STATES[1].name}")}
    assert len(folders) == (1 if change == "head" else 2)


def test_a_file_that_was_cut_is_written_again(teacher, data, tmp_path):
    forms(tmp_path)["disk"].open(known(teacher), data.corpus, FEATURES, CPU)
    (path,) = tmp_path.glob(f"*/{STATES[4].name}")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    forms(tmp_path)["disk"].open(known(teacher), data.corpus, FEATURES, CPU)
    assert path.read_bytes() == whole


def test_what_is_interrupted_leaves_nothing_that_counts(teacher, data, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(kept, "_put", stop)
        forms(tmp_path)["disk"].open(known(teacher), data.corpus, FEATURES, CPU)
    assert sizes(tmp_path) == {}
    (folder,) = tmp_path.glob("*/")
    for name in (STATES[1].name, LOGITS.name):
        (folder / f".{name}.0123abcd").write_bytes(b"of a process that was killed")
    forms(tmp_path)["disk"].open(known(teacher), data.corpus, FEATURES, CPU)
    assert set(sizes(tmp_path)) == {feature.name for feature in FEATURES}
    assert {path.name for path in folder.glob(".*")} == {".lock"}


def test_of_several_processes_one_asks_the_teacher(teacher, data, tmp_path, monkeypatch, caplog):
    passes, fill = [], kept.fill
    monkeypatch.setattr(kept, "fill", lambda *given: (passes.append(1), fill(*given)))
    forms_of = [forms(tmp_path)["disk"] for _ in range(4)]  # file locks keep threads apart as well
    threads = [
        threading.Thread(target=form.open, args=(known(teacher), data.corpus, FEATURES, CPU)) for form in forms_of
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(passes) == 1
    batch = next(iter(data.train_dataloader()))
    said = [form(batch, FEATURES)[STATES[4]] for form in forms_of]
    assert all(torch.equal(said[0], other) for other in said)


# -- too much, and what changes


def test_what_does_not_fit_takes_the_next_best_form(teacher, data, tmp_path, caplog):
    size = 1e-9 * sum(part.bytes for part in kept.parts_of(FEATURES, known(teacher), data.corpus))
    with caplog.at_level(logging.INFO):
        small = MemoryOutputs(0.9 * size, DiskOutputs(str(tmp_path), 1.1 * size))
        assert isinstance(small.open(known(teacher), data.corpus, FEATURES, CPU), DiskOutputs)
        smaller = MemoryOutputs(0.9 * size, DiskOutputs(str(tmp_path / "none"), 0.9 * size))
        assert isinstance(smaller.open(known(teacher), data.corpus, FEATURES, CPU), OnlineTeacher)
    rows = int(0.9 * data.corpus.rows)
    says = f"would take {size:.3g} GB in memory: more than outputs.limit={0.9 * size:.3g}, which holds {rows} of"
    assert says in caplog.text and {record.levelname for record in caplog.records} >= {"WARNING"}
    assert caplog.text.count("so the teacher runs on every batch") == 1
    assert not list((tmp_path / "none").glob("*"))


def test_a_full_disk_counts_until_all_is_there(teacher, data, tmp_path, monkeypatch):
    usage, plenty = type("Usage", (), {"free": 1000}), kept.shutil.disk_usage
    monkeypatch.setattr(kept.shutil, "disk_usage", lambda _: usage)
    assert isinstance(forms(tmp_path)["disk"].open(known(teacher), data.corpus, FEATURES, CPU), OnlineTeacher)
    monkeypatch.setattr(kept.shutil, "disk_usage", plenty)
    assert isinstance(forms(tmp_path)["disk"].open(known(teacher), data.corpus, FEATURES, CPU), DiskOutputs)
    monkeypatch.setattr(kept.shutil, "disk_usage", lambda _: usage)  # somebody else has filled it
    assert isinstance(forms(tmp_path)["disk"].open(known(teacher), data.corpus, FEATURES, CPU), DiskOutputs)


def test_a_disk_that_cannot_take_a_file_costs_nobody_anything(teacher, data, tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept, "_reserve", full)
    with caplog.at_level(logging.INFO):
        assert isinstance(forms(tmp_path)["disk"].open(known(teacher), data.corpus, FEATURES, CPU), OnlineTeacher)
    assert "it cannot be written to (No space left on device)" in caplog.text and sizes(tmp_path) == {}


def test_what_memory_holds_is_not_measured_against_what_it_left(teacher, data, monkeypatch):
    size = sum(part.bytes for part in kept.parts_of(FEATURES, known(teacher), data.corpus))
    free = [3.0 * size, 2.0 * size - 1, 2.0 * size - 1]
    monkeypatch.setattr(kept, "available_memory", lambda: free.pop(0))
    first, second = (MemoryOutputs(1).open(known(teacher), data.corpus, FEATURES, CPU) for _ in range(2))
    assert first.cached[STATES[1]].data_ptr() == second.cached[STATES[1]].data_ptr()
    other = MemoryOutputs(1).open(known(teacher), data.corpus, set(map(hidden_state, range(1, 5))), CPU)
    assert isinstance(other, OnlineTeacher)


def test_what_was_used_last_stays_and_the_rest_makes_room(teacher, text_dataset, tmp_path):
    corpora = [data_of(teacher, text_dataset, max_length=length).corpus for length in (8, 9, 10, 11)]
    sizes_of = [sum(part.bytes for part in kept.parts_of(FEATURES, known(teacher), corpus)) for corpus in corpora]
    form = DiskOutputs(str(tmp_path), 1e-9 * (sum(sizes_of[:3]) + 500))  # and the folders' locks
    folders = []
    for age, corpus in enumerate(corpora[:3]):
        form.open(known(teacher), corpus, FEATURES, CPU)
        folders += [path for path in tmp_path.iterdir() if path.is_dir() and path not in folders]
        os.utime(folders[-1], (age, age))
    form.open(known(teacher), corpora[0], FEATURES, CPU)  # whose turn it would be
    form.open(known(teacher), corpora[3], FEATURES, CPU)
    left = {path for path in tmp_path.iterdir() if path.is_dir()}
    assert folders[0] in left and folders[1] not in left


@pytest.mark.parametrize("form", ["memory", "disk"])
def test_what_changes_with_every_pass_is_refused(form, teacher, tmp_path):
    with pytest.raises(ConfigError, match=f"^outputs={form}: caches .* data.masking .* must be online$"):
        forms(tmp_path)[form].check(masked=True)
    distiller(teacher, SMALL, outputs=OnlineTeacher()).check(masked=True)
    with pytest.raises(ConfigError, match=f"^outputs={form}: caches"):
        distiller(teacher, SMALL, outputs=forms(tmp_path)[form]).check(masked=True)


@pytest.mark.parametrize("limit", [0, -1, "much", float("nan"), None, True])
def test_a_limit_that_is_none_is_refused(limit):
    with pytest.raises(ConfigError, match="^limit="):
        MemoryOutputs(limit)


# -- in a run


def train(tmp_path, teacher, text_dataset, outputs, *overrides, students=1):
    architecture = "{num_hidden_layers:2,num_attention_heads:2,hidden_size:8,intermediate_size:16,hidden_act:gelu}"
    settings = [f"teacher.path={teacher}", f"data.path={text_dataset}", "data.name=null", "data.sentences=false"]
    settings += ["data.columns=[premise,hypothesis]", "data.validation=validation", "data.rows=null", "data.proxy=1.0"]
    settings += [
        "data.batch_size=8",
        "trainer.max_epochs=3",
        "trainer.log_every_n_steps=1",
        "module.learning_rate=1e-2",
    ]
    settings += ["trainer.accelerator=cpu", "trainer.precision=32-true", "~latency", "module.dropout=0.0"]
    settings += [f"architectures=[{','.join([architecture] * students)}]", f"paths.runs={tmp_path}"]
    settings += [f"paths.output={tmp_path / 'out'}", "paths.export=null", f"outputs={outputs}", *overrides]
    with initialize_config_dir(str(CONF), version_base=None):
        result = runner.run(compose("train", settings))
    lines = (tmp_path / "out/metrics.csv").read_text().splitlines()
    place = lines[0].split(",").index("train/loss")
    return result, [float(line.split(",")[place]) for line in lines[1:] if line.split(",")[place]]


def test_the_course_of_a_run_does_not_depend_on_where_the_outputs_are_from(teacher, text_dataset, tmp_path):
    """Within what bf16 targets change: each by at most 2^-9 of itself, in either direction."""
    students = {"online": 1, "memory": 1, "disk": 1, "online-gang": 2, "disk-gang": 3}
    runs = {
        name: train(tmp_path / name, teacher, text_dataset, name.split("-")[0], students=count)
        for name, count in students.items()
    }
    expected, losses = runs["online"]
    assert len(losses) == 3 * 8 and losses[-1] < 0.9 * losses[0]
    for result, curve in runs.values():
        assert curve == pytest.approx(losses, rel=2e-3)
        assert result["loss"] == pytest.approx(expected["loss"], rel=2e-3)
    assert runs["memory"] == runs["disk"]
    assert runs["online-gang"][1] == pytest.approx(losses, rel=1e-5)


def test_batches_by_tokens_and_masks(teacher, text_dataset, tmp_path):
    _, curve = train(tmp_path / "a", teacher, text_dataset, "disk", "data.batch_tokens=300", "data.max_length=64")
    assert 3 <= len(curve) / 3 <= 6  # batches an epoch, of about 1000 tokens
    masks = ["objective=masked_lm", "data/masking=bert", "trainer.max_epochs=null"]
    masks += ["objective.representation.epochs=1", "objective.tokens.epochs=1"]
    with pytest.raises(ConfigError, match="^outputs=disk: caches"):
        train(tmp_path / "b", teacher, text_dataset, "disk", *masks)
    train(tmp_path / "c", teacher, text_dataset, "online", *masks)


def test_layers_of_all_depths_are_kept_for_the_candidates_to_come(teacher):
    module = distiller(teacher, SMALL, depths=[1, 3, 9])
    # 2 layers: 1, 3 and 3, 4; 1 layer: 1 and 4; 3 layers: 1, 2, 3 and 2, 3, 4; 9 are more than the teacher's
    assert module.teacher_features == set(map(hidden_state, range(1, 5)))
    assert distiller(teacher, SMALL, mapping="last_1").teacher_features == {hidden_state(4)}
