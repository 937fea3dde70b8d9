"""Files are data: code in them does not run, damage is told or measured anew, and nothing leads out of a folder."""

import io
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from transformers import BertConfig

from kdnas.app.run import run
from kdnas.base.config import folder as folder_of
from kdnas.base.errors import ConfigError
from kdnas.base.files import whole
from kdnas.costs import Protocol, Target, Torch
from kdnas.costs.key import table_key
from kdnas.costs.table import LatencyTable
from kdnas.models.exports import export
from kdnas.models.loading import load_config, load_encoder, load_tokenizer
from kdnas.search.controllers.predictor import Settings, learn, recall

ROOT = Path(__file__).parent.parent
SMALL = ["data.rows=64", "data.held_out=16", "trainer.max_epochs=1", "latency.repeats=1", "latency.runs=1"]
SMALL += ["latency.accelerators=[cpu]", "trainer.accelerator=cpu", "architecture.num_hidden_layers=2"]
SMALL += ["latency.patience=0"]
SMALL += ["architecture.num_attention_heads=2", "architecture.hidden_size=16", "architecture.intermediate_size=32"]


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "executed"


@pytest.fixture
def start(tmp_path, teacher):
    """Composes and runs a distillation, or what else the words say."""

    def run_one(*words):
        base = [f"teacher.path={teacher}", "++teacher.prepare=null", f"paths.runs={tmp_path}/runs"]
        base += (
            words
            if words and words[0].startswith("+experiment")
            else ["+experiment=demo", "student/init=random", *SMALL, *words]
        )
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose("train", [f"paths.output={tmp_path}/out", *base], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        return run(cfg)

    return run_one


# -- code in files


def bombs(tmp_path, teacher, mark):
    """A folder and two checkpoints that hold code, each in the place of the weights."""
    folder = tmp_path / "bomb"
    shutil.copytree(teacher, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": torch.ones(3), "bomb": Bomb(mark)}, folder / "pytorch_model.bin")
    torch.save({"state_dict": {}, "bomb": Bomb(mark)}, tmp_path / "zip.ckpt")
    (tmp_path / "pickle.ckpt").write_bytes(pickle.dumps({"state_dict": {}, "bomb": Bomb(mark)}))
    return {"folder": folder, "zip": tmp_path / "zip.ckpt", "pickle": tmp_path / "pickle.ckpt"}


FINETUNE, GLUE = ["+experiment=finetune", "data=demo", "task=demo"], ["+experiment=glue", "data=demo", "task=rte"]
DOORS = {
    "checkpoint": (FINETUNE, "checkpoint", ["folder", "zip", "pickle"]),
    "model": (GLUE, "checkpoint", ["folder", "zip", "pickle"]),
    "student.init.source": (["student/init=checkpoint"], "student.init.source", ["folder", "zip", "pickle"]),
    "teacher.path": ([], "teacher.path", ["folder"]),
}


@pytest.mark.parametrize(("key", "kind"), [(key, kind) for key, (_, _, kinds) in DOORS.items() for kind in kinds])
def test_code_in_a_model_is_not_run(key, kind, start, tmp_path, teacher, mark):
    source = bombs(tmp_path, teacher, mark)[kind]
    words, blamed, _ = DOORS[key]
    with pytest.raises(ConfigError) as caught:
        start(*words, f"{key}={source}")
    assert str(caught.value).startswith(f"{blamed}={source}: ") and "holding code" in str(caught.value)
    assert str(caught.value).isprintable() and "weights_only" not in str(caught.value)
    assert not mark.exists()
    careless = source / "pytorch_model.bin" if kind == "folder" else source
    pickle.loads(careless.read_bytes()) if kind == "pickle" else torch.load(careless, weights_only=False)
    assert mark.exists()  # it was a bomb


@pytest.mark.parametrize("kind", ["zip", "pickle"])
def test_code_in_a_runs_last_checkpoint_is_not_run(kind, start, tmp_path, teacher, mark):
    (tmp_path / "out").mkdir()
    shutil.copy(bombs(tmp_path, teacher, mark)[kind], tmp_path / "out/last.ckpt")
    with pytest.raises(ConfigError, match=f"^paths.output={tmp_path}/out/last.ckpt: not a whole checkpoint"):
        start()
    assert not mark.exists() and {path.name for path in (tmp_path / "out").iterdir()} == {".lock", "last.ckpt"}


SETTINGS = Settings(8, 4, 1e-2, 0.95, 2, True, True, 0)
EPISODES = [[((0, 1), 0.5), ((1, 0), 0.7)]]


@pytest.mark.parametrize("kind", ["bomb", "pickle", "text", "cut", "other shape", "gone"])
def test_a_damaged_controller_is_learned_anew(kind, tmp_path, mark):
    cache, states = tmp_path / "controller.pt", [(0, 0), (1, 1)]
    expected = learn(EPISODES, (2, 2), SETTINGS).predict(states)
    recall(["same"], None, cache, EPISODES, (2, 2), SETTINGS)
    good = cache.read_bytes()
    {
        "bomb": lambda: torch.save({"fingerprint": "same", "weights": Bomb(mark)}, cache),
        "pickle": lambda: cache.write_bytes(pickle.dumps(Bomb(mark))),
        "text": lambda: cache.write_text("404 not found"),
        "cut": lambda: cache.write_bytes(good[: len(good) // 2]),
        "other shape": lambda: torch.save({"fingerprint": "same", "weights": {}, "memory": 3}, cache),
        "gone": cache.unlink,
    }[kind]()
    assert recall(["same"], None, cache, EPISODES, (2, 2), SETTINGS).predict(states) == expected
    assert not mark.exists()
    assert torch.load(cache, weights_only=True)["fingerprint"] == "same"  # whole again
    assert [path.name for path in tmp_path.iterdir()] == ["controller.pt"]


@pytest.mark.parametrize("part", ["config", "model", "tokenizer"])
def test_code_that_comes_with_a_model_is_neither_run_nor_asked_about(part, tmp_path, teacher, mark, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run it"))
    folder = tmp_path / "remote"
    shutil.copytree(teacher, folder)
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    name = "tokenizer_config.json" if part == "tokenizer" else "config.json"
    values = json.loads((folder / name).read_text())
    values |= {
        "config": {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}},
        "model": {"auto_map": {"AutoModel": "evil.Model"}},
        "tokenizer": {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}},
    }[part]
    (folder / name).write_text(json.dumps(values))
    try:
        load_encoder(str(folder))
        load_tokenizer(str(folder))
    except ConfigError as error:
        assert str(error).startswith(f"teacher.path={folder}: no model there that can be read")
    assert not mark.exists()


# -- damaged models


CONFIGS = {
    "text": "not json",
    "list": "[]",
    "no text": b"\xff\xfe\x00",
    "words for numbers": {"hidden_size": "big"},
    "below zero": {"hidden_size": -4},
    "null": {"num_hidden_layers": None},
    "no such activation": {"hidden_act": "nope"},
    "odd heads": {"num_attention_heads": 3},
    "code for attention": {"attn_implementation": "evil/kernel"},
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_that_is_none_is_refused(kind, tmp_path, teacher):
    folder, content = tmp_path / "odd", CONFIGS[kind]
    shutil.copytree(teacher, folder)
    if isinstance(content, dict):
        content = json.dumps(json.loads((folder / "config.json").read_text()) | content)
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=f"^teacher.path={folder}: ") as caught:
        load_encoder(str(folder))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("content", ["", "[]", "{", None], ids=["empty", "list", "cut", "gone"])
def test_a_tokenizer_that_is_none_is_refused(content, tmp_path, teacher):
    """Transformers makes one up where there is none: it would take every word for an unknown one."""
    folder = tmp_path / "odd"
    shutil.copytree(teacher, folder)
    if content is None:
        (folder / "tokenizer_config.json").unlink()
        (folder / "tokenizer.json").unlink()
    else:
        (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigError, match=f"^teacher.path={folder}: no tokenizer there that can be read"):
        load_tokenizer(str(folder))


# -- run folders


@pytest.fixture
def finished(start, tmp_path):
    """The folder of a small run that has finished."""
    start()
    return tmp_path / "out"


@pytest.mark.long
def test_damaged_notes_of_a_run_are_told_and_kept(finished, start):
    odd = {
        "settings.json": ["", "{", "[]", "3", b"\xff"],
        "results.json": ["", "[", "[]", "{}", "[3]", '[{"loss": "x"}]'],
    }
    for name, contents in odd.items():
        good = (finished / name).read_bytes()
        for content in contents:
            content = content if isinstance(content, bytes) else content.encode()
            (finished / name).write_bytes(content)
            before = {path: path.read_bytes() for path in finished.rglob("[!.]*") if path.is_file()}
            with pytest.raises(ConfigError, match=f"^paths.output={finished}: its {name} is damaged; remove that file"):
                start()
            assert before == {path: path.read_bytes() for path in finished.rglob("[!.]*") if path.is_file()}
        (finished / name).write_bytes(good)
    assert start()["loss"] > 0  # nothing else was lost

    (finished / "results.json").unlink()
    last = (finished / "last.ckpt").read_bytes()
    changes = [
        {"epoch": None},
        {"epoch": "x"},
        {"loops": 3},
        {"best": None},
        {"best": 3},
        {"kdnas": 3},
        {"callbacks": "x"},
    ]
    for change in changes:
        content = torch.load(io.BytesIO(last), weights_only=True) | change
        torch.save({name: value for name, value in content.items() if value is not None}, finished / "last.ckpt")
        with pytest.raises(ConfigError, match=f"^paths.output={finished}/last.ckpt: no run there that can be read"):
            start()
    for length in (0, 100, len(last) // 2, len(last) - 50):
        (finished / "last.ckpt").write_bytes(last[:length])
        with pytest.raises(ConfigError, match=f"^paths.output={finished}/last.ckpt: not a whole checkpoint"):
            start()


# -- the latency table


KEY = table_key(BertConfig(), Target("cpu"), Torch(), Protocol())
ROWS = {
    "cut": json.dumps({"key": KEY, "median": 1.0, "spread": 0.1})[:-9],
    "list": "[]",
    "number": "3",
    "empty": "{}",
    "no median": json.dumps({"key": KEY, "spread": 0.1}),
    "nan": json.dumps({"key": KEY, "median": float("nan"), "spread": 0.1}),
    "infinite": json.dumps({"key": KEY, "median": float("inf"), "spread": 0.1}),
    "negative": json.dumps({"key": KEY, "median": -1.0, "spread": 0.1}),
    "zero": json.dumps({"key": KEY, "median": 0, "spread": 0.1}),
    "negative spread": json.dumps({"key": KEY, "median": 1.0, "spread": -0.1}),
    "text": json.dumps({"key": KEY, "median": "1.0", "spread": 0.1}),
    "true": json.dumps({"key": KEY, "median": True, "spread": 0.1}),
    "not UTF-8": b"\xff\xfe\x00",
    "nothing": "",
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_row_that_is_no_latency_is_passed_over(kind, tmp_path):
    good = json.dumps({"key": KEY, "median": 2.0, "spread": 0.5})
    row = ROWS[kind] if isinstance(ROWS[kind], bytes) else ROWS[kind].encode()
    table = LatencyTable(tmp_path / "latency.jsonl")
    table.path.write_bytes(row + b"\n")
    assert table.find(KEY) is None  # it is measured anew
    table.path.write_bytes(row + b"\n" + good.encode() + b"\n")
    assert (table.find(KEY).median, table.find(KEY).spread) == (2.0, 0.5)


# -- names and folders


@pytest.mark.parametrize("value", ["..", ".", "", "a/b", "/", "../x", "a\nb", "a\0b", "\u2028", None, "é" * 51])
def test_a_name_that_leads_elsewhere_is_refused(value):
    with pytest.raises(ConfigError, match=r"^name=.*: names a folder; must be of 1 to 100 printable characters"):
        folder_of("name", _root_=OmegaConf.create({"name": value}))


@pytest.mark.parametrize(
    ("value", "name"), [("minilm", "minilm"), (3, "3"), ("a b", "a b"), ("..a", "..a"), ("é", "é")]
)
def test_other_names_stay_as_they_are(value, name):
    assert folder_of("name", _root_=OmegaConf.create({"name": value})) == name


def test_every_folder_that_a_name_decides_checks_it():
    """A name within a path goes through the resolver `folder` wherever it is."""
    names = ("name", "label", "task.name", "teacher.name", "seed")
    for path in (ROOT / "conf").rglob("*.yaml"):
        for line in path.read_text().splitlines():
            for name in names:
                beside = f"/${{{name}}}" in line or f"${{{name}}}/" in line or f"_${{{name}}}" in line
                assert not beside or line.startswith("name:"), f"{path}: {line}"


def test_an_export_through_a_link_leaves_the_link(teacher, tmp_path):
    (tmp_path / "disk/model").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk/model")
    for _ in range(2):
        export(load_encoder(teacher), load_tokenizer(teacher), tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and load_config(str(tmp_path / "disk/model")).hidden_size == 16


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), whole(path) as aside:
        aside.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    with whole(path) as aside:
        aside.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]
