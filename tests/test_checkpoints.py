"""What is left behind: checkpoints that are data, and folders that transformers loads without this project."""

import json
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import lightning as L
import pandas as pd
import pytest
import torch
from labelled import load_classifier
from objectives import hidden_states
from torch.utils.data import DataLoader
from transformers import AutoModel, BertConfig, BertModel, DataCollatorWithPadding

from kdnas.base.errors import ConfigError
from kdnas.models.architecture import Architecture
from kdnas.models.checkpoints import PACK, read, unpack
from kdnas.models.exports import export
from kdnas.models.loading import load_encoder
from kdnas.modules import StudentDistiller

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

FIRST, SECOND = Architecture(2, 2, 8, 16, "gelu"), Architecture(3, 4, 12, 24, "relu")
TEXTS = ["all big dogs are running", "no cats are sleeping quietly in the park"]
ELSEWHERE = """
import json, sys
import torch
from transformers import AutoModel, AutoTokenizer
texts, *folders = json.loads(sys.argv[1])
told = []
for folder in folders:
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = torch.stack(model(**batch, output_hidden_states=True).hidden_states)
    told.append({"ids": batch["input_ids"].tolist(), "states": states.tolist()})
mine = [name for name in sys.modules if name.split(".")[0] in ("kdnas", "lightning", "hydra")]
print(json.dumps([mine, *told]))
"""


@pytest.fixture(scope="module")
def trained(teacher, tmp_path_factory):
    """A distiller of two students, trained a little, and its checkpoint."""
    module = StudentDistiller(teacher, [FIRST, SECOND], hidden_states(), learning_rate=1e-2, dropout=0.0)
    rows = [module.tokenizer(text) for text in TEXTS * 4]
    loader = DataLoader(rows, batch_size=2, collate_fn=DataCollatorWithPadding(module.tokenizer))
    run = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    run.fit(module, loader)
    path = tmp_path_factory.mktemp("run") / "last.ckpt"
    run.save_checkpoint(path)
    return module.eval(), path


@pytest.fixture
def damaged(trained, tmp_path):
    """Writes a copy of the checkpoint, changed by a function, and gives its path."""

    def write(change):
        checkpoint = torch.load(trained[1], weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, tmp_path / "changed.ckpt")
        return tmp_path / "changed.ckpt"

    return write


def other_config(**values):
    """Changes the first student's config in a checkpoint."""

    def change(checkpoint):
        configs = checkpoint[PACK]["configs"]
        prefix = next(iter(configs))
        configs[prefix] = json.dumps(json.loads(configs[prefix]) | values)

    return change


def encoder_of(classifier):
    return {name: value for name, value in classifier.base_model.state_dict().items() if not name.startswith("pooler.")}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# -- export


def test_plain_transformers_loads_what_was_exported(trained, tmp_path):
    module, path = trained
    folders = [
        export(student.model, module.tokenizer, tmp_path / "deep" / f"model{i}")
        for i, student in enumerate(module.students)
    ]
    command = [sys.executable, "-c", ELSEWHERE, json.dumps([TEXTS, *map(str, folders)])]
    mine, *told = json.loads(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)
    assert mine == [] and len(told) == 2
    for number, (layers, heads, hidden, ffn, activation) in enumerate([(2, 2, 8, 16, "gelu"), (3, 4, 12, 24, "relu")]):
        config, weights, tokenizer = unpack(path, student=number)
        own = BertConfig(
            vocab_size=config.vocab_size,
            max_position_embeddings=128,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            hidden_size=hidden,
            intermediate_size=ffn,
            hidden_act=activation,
        )
        model = BertModel(own, add_pooling_layer=False).eval()
        model.load_state_dict(weights)
        batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
        assert told[number]["ids"] == batch["input_ids"].tolist()
        assert told[number]["ids"] == module.tokenizer(TEXTS, padding=True)["input_ids"]
        with torch.no_grad():
            expected = torch.stack(model(**batch, output_hidden_states=True).hidden_states)
        torch.testing.assert_close(torch.tensor(told[number]["states"]), expected, rtol=1e-5, atol=1e-6)


class FailingError(Exception):
    pass


def failing(*_, **__):
    raise FailingError


@pytest.mark.parametrize("part", ["model", "tokenizer"])
@pytest.mark.parametrize("there", [False, True], ids=["new", "over an older one"])
def test_an_export_is_whole_or_absent(trained, tmp_path, monkeypatch, part, there):
    module, _ = trained
    models, folder = [student.model for student in module.students], tmp_path / "model"
    if there:
        export(models[0], module.tokenizer, folder)
    before = {path.name: path.read_bytes() for path in folder.glob("*")}
    monkeypatch.setattr(models[1] if part == "model" else module.tokenizer, "save_pretrained", failing)
    with pytest.raises(FailingError):
        export(models[1], module.tokenizer, folder)
    assert {path.name: path.read_bytes() for path in folder.glob("*")} == before
    assert list(tmp_path.iterdir()) == ([folder] if there else [])


def test_an_export_takes_the_place_of_an_older_one(trained, tmp_path):
    module, _ = trained
    for student, layers in zip(module.students, (2, 3), strict=True):
        export(student.model, module.tokenizer, tmp_path / "model")
        assert AutoModel.from_pretrained(tmp_path / "model").config.num_hidden_layers == layers
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_export_never_takes_the_place_of_anything_else(trained, tmp_path):
    """As of the folder that a slip in `paths.export` names."""
    module, _ = trained
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("dear to someone")
    with pytest.raises(ConfigError, match=str(tmp_path / "home")):
        export(module.students[0].model, module.tokenizer, tmp_path / "home")
    assert (tmp_path / "home" / "thesis.tex").read_text() == "dear to someone"


# -- a start for fine-tuning


def test_a_classifier_starts_from_the_distilled_weights(trained, tmp_path):
    module, path = trained
    distilled = module.students[0].model.state_dict()
    folder = export(module.students[0].model, module.tokenizer, tmp_path / "model")
    for source in (path, folder):
        model, tokenizer = load_classifier(str(source), num_labels=3)
        assert same(encoder_of(model), distilled)
        batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
        assert batch["input_ids"].tolist() == module.tokenizer(TEXTS, padding=True)["input_ids"]
        assert model(**batch, labels=torch.tensor([2, 0])).logits.shape == (2, 3)


def test_a_random_start_has_the_architecture_and_not_the_weights(trained, tmp_path):
    module, path = trained
    distilled = module.students[0].model.state_dict()
    folder = export(module.students[0].model, module.tokenizer, tmp_path / "model")
    for source in (path, folder):
        weights = encoder_of(load_classifier(str(source), num_labels=2, random=True)[0])
        assert {name: value.shape for name, value in weights.items()} == {n: v.shape for n, v in distilled.items()}
        matrices = [name for name in weights if name.endswith("dense.weight")]
        assert len(matrices) == 6 and not any(torch.equal(weights[name], distilled[name]) for name in matrices)


def test_one_label_makes_a_regressor(trained):
    model, tokenizer = load_classifier(str(trained[1]), num_labels=1)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    output = model.eval()(**batch, labels=torch.tensor([0.5, -2.0]))
    expected = ((output.logits.detach().numpy()[:, 0] - [0.5, -2.0]) ** 2).mean()
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)


# -- what is refused


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


BROKEN = {
    "empty": lambda path, whole: path.write_bytes(b""),
    "text": lambda path, whole: path.write_text("404 not found\n"),
    "zeros": lambda path, whole: path.write_bytes(bytes(5000)),
    "noise": lambda path, whole: path.write_bytes(bytes((i * i * 31 + i) % 251 for i in range(5000))),
    "cut short": lambda path, whole: path.write_bytes(whole[:-100]),
    "cut in half": lambda path, whole: path.write_bytes(whole[: len(whole) // 2]),
    "cut after the start": lambda path, whole: path.write_bytes(whole[:1000]),
    "other pickle": lambda path, whole: path.write_bytes(pickle.dumps([1, 2, 3])),
    "cut pickle": lambda path, whole: path.write_bytes(pickle.dumps({"state_dict": list(range(1000))})[:-50]),
    "not Lightning's": lambda path, whole: torch.save({"weights": torch.ones(3)}, path),
    "not a mapping": lambda path, whole: torch.save([torch.ones(3)], path),
    "not kdnas's": lambda path, whole: torch.save({"state_dict": {"layer.weight": torch.ones(3)}}, path),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_no_whole_checkpoint_is_refused_with_its_path(trained, tmp_path, kind):
    path = tmp_path / "broken.ckpt"
    BROKEN[kind](path, trained[1].read_bytes())
    with pytest.raises(ConfigError, match=f"^checkpoint={path}: not ") as refusal:
        load_classifier(str(path), num_labels=2)
    assert len(str(refusal.value).splitlines()) == 1


def test_a_checkpoint_cut_anywhere_is_refused(trained, tmp_path):
    whole, path = trained[1].read_bytes(), tmp_path / "cut.ckpt"
    for length in range(0, len(whole), len(whole) // 25):
        path.write_bytes(whole[:length])
        with pytest.raises(ConfigError, match=str(path)):
            read(path)


def pickled(value, path):
    path.write_bytes(pickle.dumps(value))


@pytest.mark.parametrize(
    ("save", "careless"), [(torch.save, partial(torch.load, weights_only=False)), (pickled, pd.read_pickle)]
)
def test_code_in_a_checkpoint_is_refused_and_not_executed(tmp_path, save, careless):
    mark, path = tmp_path / "executed", tmp_path / "bomb.ckpt"
    save({"state_dict": {}, "bomb": Bomb(mark)}, path)
    with pytest.raises(ConfigError, match=f"checkpoint={path}"):
        load_classifier(str(path), num_labels=2)
    assert not mark.exists()
    careless(path)
    assert mark.exists()  # it was a bomb


@pytest.mark.parametrize("name", ["gone.ckpt", "gone"])
def test_a_checkpoint_that_is_not_there_is_refused_with_its_path(tmp_path, name):
    with pytest.raises(ConfigError, match=f"^checkpoint={tmp_path / name}: "):
        load_classifier(str(tmp_path / name), num_labels=2)


OTHERS = [
    {"hidden_size": 12},
    {"intermediate_size": 32},
    {"vocab_size": 50},
    {"num_hidden_layers": 3},
    {"num_hidden_layers": 1},
]


@pytest.mark.parametrize("values", OTHERS, ids=str)
def test_weights_of_another_architecture_than_the_config_are_refused(trained, damaged, tmp_path, values):
    path = damaged(other_config(**values))
    with pytest.raises(ConfigError, match=f"^checkpoint={path}: "):
        load_classifier(str(path), num_labels=2)
    folder = export(trained[0].students[0].model, trained[0].tokenizer, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    with pytest.raises(ConfigError, match=f"^checkpoint={folder}: "):
        load_classifier(str(folder), num_labels=2)


def test_a_missing_tensor_is_refused_with_its_name(damaged):
    name = "embeddings.word_embeddings.weight"
    path = damaged(lambda checkpoint: checkpoint["state_dict"].pop(f"students.0.model.{name}"))
    with pytest.raises(ConfigError, match=rf"^checkpoint={path}: .*{name}"):
        load_classifier(str(path), num_labels=2)


@pytest.mark.parametrize("length", [0, 4, 100, -10], ids="{} bytes".format)
@pytest.mark.parametrize("load", [partial(load_classifier, num_labels=2), load_encoder])
def test_a_folder_with_cut_weights_is_refused_with_its_path(trained, tmp_path, load, length):
    folder = export(trained[0].students[0].model, trained[0].tokenizer, tmp_path / "model")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:length])
    with pytest.raises(ConfigError, match=str(folder)):
        load(str(folder))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_an_incomplete_folder_is_refused_with_its_path(trained, tmp_path, name):
    folder = export(trained[0].students[0].model, trained[0].tokenizer, tmp_path / "model")
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=f"^checkpoint={folder}: "):
        load_classifier(str(folder), num_labels=2)


def test_the_tokenizer_in_a_checkpoint_stays_in_its_folder(damaged, tmp_path):
    outside = tmp_path / "outside"
    for name in (str(outside), "../outside", "..", ""):
        path = damaged(lambda checkpoint, name=name: checkpoint[PACK]["tokenizer"].update({name: "x"}))
        with pytest.raises(ConfigError, match=f"^checkpoint={path}: not a checkpoint of kdnas"):
            unpack(path)
        assert not outside.exists()
