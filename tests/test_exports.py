"""Exports: folders that other tools read, with the umask's modes, that never replace what others made."""

import json
import os
import stat
from pathlib import Path

import lightning as L
import pytest
import tokenizers
import torch
import transformers
import yaml
from hydra import compose, initialize_config_dir
from labelled import load_classifier
from objectives import hidden_states
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertModel,
    DataCollatorWithPadding,
)

from kdnas.app import run as runner
from kdnas.base.config import instantiate
from kdnas.base.errors import ConfigError
from kdnas.models.architecture import Architecture
from kdnas.models.building import new_encoder
from kdnas.models.checkpoints import pack, unpack
from kdnas.models.exports import card, check_export, export
from kdnas.models.heads import Classifier, Encoder
from kdnas.models.initialisation import PretrainedWeights
from kdnas.models.loading import load_config, load_encoder, load_tokenizer
from kdnas.models.resizing import student_config
from kdnas.modules import StudentDistiller

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

CONF = str(Path(__file__).resolve().parent.parent / "conf")
SMALL = Architecture(1, 2, 8, 16, "gelu")
LENGTH = 12
"""Tokens at which the training cuts texts."""


@pytest.fixture(scope="module")
def cutting_teacher(teacher, tmp_path_factory):
    """The random teacher with a tokenizer that cuts and pads by itself, and with dropout of its own."""
    folder = tmp_path_factory.mktemp("cutting")
    model = AutoModelForSequenceClassification.from_pretrained(teacher, num_labels=3)
    model.config.update({"hidden_dropout_prob": 0.25, "attention_probs_dropout_prob": 0.15})
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(teacher).save_pretrained(folder)
    rules = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    rules.enable_truncation(100)
    rules.enable_padding(length=100)
    rules.save(str(folder / "tokenizer.json"))
    return str(folder)


def run(folder, *overrides):
    """`train.py` in this process, under a umask that lets the group write and others do nothing."""
    settings = ["data=demo", "data.rows=24", "data.held_out=9", "data.batch_size=4", f"data.max_length={LENGTH}"]
    settings += [f"paths.runs={folder}/runs", f"paths.output={folder}/run", f"paths.export={folder}/run/model"]
    settings += ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_epochs=1", "search.dir=null"]
    before = os.umask(0o007)
    try:
        with initialize_config_dir(CONF, version_base=None):
            runner.run(compose("train", [*overrides, *settings]))
    finally:
        os.umask(before)
    return folder / "run"


@pytest.fixture(scope="module")
def distilled(cutting_teacher, tmp_path_factory):
    sizes = [f"architecture.{name}={value}" for name, value in SMALL.to_dict().items()]
    own = [f"teacher.path={cutting_teacher}", "~latency", "module.dropout=0", *sizes]
    return run(tmp_path_factory.mktemp("distilled"), *own)


@pytest.fixture(scope="module")
def fine_tuned(distilled, tmp_path_factory):
    """A classifier that started from the distillation's checkpoint."""
    own = ["+experiment=finetune", "task=demo", "data=demo", f"checkpoint={distilled}/best.ckpt"]
    return run(tmp_path_factory.mktemp("tuned"), *own)


def test_every_file_has_the_mode_of_the_umask(distilled):
    paths = [distilled, *distilled.rglob("*")]
    assert {"model.safetensors", "best.ckpt", "last.ckpt", "results.json"} < {path.name for path in paths}
    for path in paths:
        assert oct(stat.S_IMODE(path.stat().st_mode)) == ("0o770" if path.is_dir() else "0o660"), path


@pytest.mark.parametrize("which", ["distilled", "fine_tuned"])
def test_the_tokenizer_leaves_as_it_came(which, request, cutting_teacher):
    """What other tools read is the teacher's file, and nothing of how the training cut its texts."""
    folder = request.getfixturevalue(which) / "model"
    theirs, ours = (json.loads((Path(path) / "tokenizer.json").read_text()) for path in (cutting_teacher, folder))
    assert ours == theirs and theirs["truncation"]["max_length"] == 100
    text = " ".join(["all big dogs are running"] * 5)
    assert len(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids) == 100
    assert AutoTokenizer.from_pretrained(folder).model_max_length == 128


def test_dropout_of_the_distillation_is_not_the_student_s(distilled, fine_tuned):
    for source in (distilled / "model", fine_tuned / "model"):
        model = AutoModelForSequenceClassification.from_pretrained(source)
        assert (model.config.hidden_dropout_prob, model.config.attention_probs_dropout_prob) == (0.25, 0.15)
    for source in (distilled / "model", distilled / "best.ckpt", distilled / "last.ckpt"):
        model, _ = load_classifier(str(source), 2)
        shares = {name: part.p for name, part in model.named_modules() if isinstance(part, torch.nn.Dropout)}
        assert {share for name, share in shares.items() if "attention.self" in name} == {0.15}
        assert {share for name, share in shares.items() if "attention.self" not in name} == {0.25}


FAMILIES = {
    "Bert": {},
    "Albert": {"embedding_size": 8},
    "DistilBert": {},
    "Electra": {"embedding_size": 8},
    "MPNet": {},
    "ModernBert": {"pad_token_id": 0, "attention_dropout": 0.1, "mlp_dropout": 0.1},
}


@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_takes_effect_in_every_family(family, share):
    kind = getattr(transformers, f"{family}Config")
    config = kind(vocab_size=30, **FAMILIES[family])
    config.update({"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 8})
    said = config.to_dict()
    model = Classifier(3).new(config, seed=0, dropout=share)
    assert config.to_dict() == said
    assert {name: model.config.to_dict()[name] for name in said if "dropout" in name} == {
        name: value for name, value in said.items() if "dropout" in name
    }
    parts = list(model.modules())
    assert {part.p for part in parts if isinstance(part, torch.nn.Dropout)} <= {share}
    model.train()
    tokens = torch.arange(1, 7)[None]
    twice = [model(input_ids=tokens).logits for _ in range(2)]
    assert torch.equal(*twice) == (share == 0)


# -- in the place of what


@pytest.fixture
def parts(teacher):
    return load_encoder(teacher), load_tokenizer(teacher)


def test_an_export_takes_the_place_of_exports_alone(parts, tmp_path):
    for name in ("model", "gang/0", "gang/1"):
        check_export(tmp_path / name)
        export(*parts, tmp_path / name)
    check_export(tmp_path / "model")
    check_export(tmp_path / "gang")
    check_export(tmp_path / "gang", several=True)
    (tmp_path / "file").write_text("mine")
    for name in ("model/model.onnx", "gang/1/notes.txt", "gang/mine.txt"):
        (tmp_path / name).write_text("mine")
    says = {"model": "holds model.onnx, which kdnas did not write", "file": "is a file", "gang": "holds something that"}
    for name, reason in says.items():
        with pytest.raises(ConfigError, match=f"^paths.export={tmp_path / name}: {reason}.*; must be empty, not there"):
            check_export(tmp_path / name)
    with pytest.raises(ConfigError, match="holds the export of one student"):
        check_export(tmp_path / "model", several=True)


def test_a_model_that_kdnas_did_not_write_stays(parts, tmp_path):
    """A user's own, or one that has been trained on since: it looks just like an export."""
    (tmp_path / "own").mkdir()
    for part in parts:
        part.save_pretrained(tmp_path / "own")
    export(*parts, tmp_path / "trained on")
    parts[0].embeddings.word_embeddings.weight.data += 1
    parts[0].save_pretrained(tmp_path / "trained on")
    for name in ("own", "trained on"):
        before = {path: path.read_bytes() for path in (tmp_path / name).iterdir()}
        with pytest.raises(ConfigError, match=f"^paths.export={tmp_path / name}: holds "):
            export(*parts, tmp_path / name)
        assert {path: path.read_bytes() for path in (tmp_path / name).iterdir()} == before


def test_what_a_user_wrote_about_a_model_stays(parts, tmp_path):
    folder = export(*parts, tmp_path / "model", {"objective": "first"})
    export(*parts, folder, {"objective": "second"})
    assert "second" in (folder / "README.md").read_text()  # what kdnas wrote is written anew
    (folder / "README.md").write_text("my own card")
    (folder / "LICENSE").write_text("mine")
    for _ in range(2):
        export(*parts, folder, {"objective": "third"})
        assert (folder / "README.md").read_text() == "my own card" and (folder / "LICENSE").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_whatever_a_tokenizer_saves_belongs_to_an_export(parts, tmp_path):
    model, tokenizer = parts
    tokenizer.chat_template = "{{ messages }}"
    for _ in range(2):
        folder = export(model, tokenizer, tmp_path / "model")
    assert AutoTokenizer.from_pretrained(folder).chat_template == "{{ messages }}"
    assert "chat_template.jinja" in pack({"": model}, tokenizer)["tokenizer"]


# -- cards


def test_the_card_says_what_it_is(distilled, cutting_teacher):
    text = (distilled / "model/README.md").read_text()
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "transformers"
    assert yaml.safe_load(head)["pipeline_tag"] == "feature-extraction"
    loss = json.loads((distilled / "results.json").read_text())[0]["loss"]
    for fact in ("[1, 2, 8, 16, gelu]", Path(cutting_teacher).name, "hidden states", f"loss {loss:.4f}"):
        assert fact in body


def test_the_hub_s_teacher_is_the_base_model_and_folders_are_not(parts, tmp_path):
    model, _ = parts
    for value, base in (("google-bert/bert-base-uncased", "google-bert/bert-base-uncased"), (str(tmp_path), None)):
        head = card(model, "x", {"distilled from": value}, {}).split("---\n")[1]
        assert yaml.safe_load(head).get("base_model") == base
    assert str(tmp_path) not in card(model, "x", {"distilled from": str(tmp_path)}, {})


def test_the_card_s_code_runs_as_it_stands(distilled, fine_tuned, monkeypatch):
    """And gives, of an encoder, the mean of the real tokens' states, the same at each load."""
    monkeypatch.chdir(distilled)
    blocks = (distilled / "model/README.md").read_text().split("```python\n")[1:]
    code = "".join(block.split("```")[0] for block in blocks)
    texts, vectors = ["all dogs are running", "no cats"], []
    for _ in range(2):
        scope = {"texts": texts}
        exec(code, scope)
        vectors.append(scope["vectors"])
    assert torch.equal(*vectors)
    model = BertModel.from_pretrained(distilled / "model", add_pooling_layer=False).eval()
    for text, vector in zip(texts, vectors[0], strict=True):
        ids = tokenizers.Tokenizer.from_file(str(distilled / "model/tokenizer.json"))
        ids.no_padding()
        states = model(input_ids=torch.tensor([ids.encode(text).ids])).last_hidden_state
        torch.testing.assert_close(vector, states[0].mean(0), rtol=1e-4, atol=1e-5)
    tuned = (fine_tuned / "model/README.md").read_text()
    assert "AutoModelForSequenceClassification.from_pretrained" in tuned and "pooler" not in tuned


# -- gangs


SIZES = [Architecture(1, 2, 8, 16, "gelu"), Architecture(2, 2, 16, 16, "gelu")]


@pytest.fixture(scope="module")
def gang(teacher, tmp_path_factory):
    module = StudentDistiller(teacher, SIZES, hidden_states())
    loader = DataLoader([module.tokenizer("no")], collate_fn=DataCollatorWithPadding(module.tokenizer))
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, **quiet)
    trainer.fit(module, loader)
    path = tmp_path_factory.mktemp("gang") / "last.ckpt"
    trainer.save_checkpoint(path)
    return module, str(path)


def test_a_checkpoint_of_several_students_says_which_it_gives(gang, caplog):
    module, path = gang
    with caplog.at_level("INFO", "kdnas"):
        assert load_classifier(path, 2)[0].config.hidden_size == 8
    assert "holds the students 0 [1, 2, 8, 16, gelu], 1 [2, 2, 16, 16, gelu]; taking 0" in caplog.text
    for number, architecture in enumerate(SIZES):
        model, _ = load_classifier(path, 2, student=number)
        assert model.config.hidden_size == architecture.hidden_size
        table = module.students[number].model.embeddings.word_embeddings.weight
        assert torch.equal(model.bert.embeddings.word_embeddings.weight, table)
    with initialize_config_dir(CONF, version_base=None):
        cfg = compose("train", ["+experiment=finetune", f"checkpoint={path}", "module.source.student=1"])
    assert instantiate(cfg.module).model.config.hidden_size == 16
    cfg.module.source.student = 2
    with pytest.raises(ConfigError, match=r"^module.source.student=2: must be the number of a student in .*: 0 \[1, 2"):
        instantiate(cfg.module)


def test_a_start_takes_the_gang_s_student_of_its_own_architecture(gang, teacher):
    module, path = gang
    model = Encoder().new(student_config(load_config(teacher), SIZES[1]), seed=9)
    PretrainedWeights(path)(model)
    assert torch.equal(
        model.embeddings.word_embeddings.weight, module.students[1].model.embeddings.word_embeddings.weight
    )
    with pytest.raises(ConfigError, match=f"^student.init.source={path}: its num_hidden_layers is 1; must"):
        PretrainedWeights(path)(new_encoder(student_config(load_config(teacher), Architecture(3, 2, 4, 4, "gelu"))))


def test_a_tokenizer_s_file_that_is_no_text_survives_a_checkpoint(gang, teacher, tmp_path, monkeypatch):
    """Files that are not text, as sentencepiece models, survive."""
    module, path = gang
    binary = bytes(range(256))

    class Slow:
        def save_pretrained(self, folder):
            module.tokenizer.save_pretrained(folder)
            (Path(folder) / "spiece.model").write_bytes(binary)

    checkpoint = torch.load(path, weights_only=True)
    checkpoint["kdnas"] = pack({"students.0.model.": module.students[0].model}, Slow())
    torch.save(checkpoint, tmp_path / "slow.ckpt")
    seen = []
    monkeypatch.setattr(
        "kdnas.models.checkpoints.AutoTokenizer.from_pretrained",
        lambda folder, **_: seen.append((Path(folder) / "spiece.model").read_bytes()),
    )
    unpack(tmp_path / "slow.ckpt")
    assert seen == [binary]
