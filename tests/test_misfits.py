"""Teachers that do not fit: one line that names key and value, exit status 1, and nothing written."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_bad_inputs import data, refused  # noqa: F401 - fixtures
from transformers import GPT2Config, T5Config, ViTConfig

TEXT = "data.path={data}/good data.columns=[premise] data.sentences=false data.max_length=32"
PAIRS = TEXT.replace("[premise]", "[premise,hypothesis]")


def values(file, **changes):
    """Sets values in a JSON file of the teacher; None removes one."""

    def alter(folder):
        content = json.loads((folder / file).read_text()) | changes
        (folder / file).write_text(json.dumps({name: value for name, value in content.items() if value != "gone"}))

    return alter


def config(**changes):
    return values("config.json", **changes)


def tokenizer(**changes):
    return values("tokenizer_config.json", **{"tokenizer_class": "PreTrainedTokenizerFast"} | changes)


def rules(**changes):
    """Changes in tokenizer.json, which is then taken as it is."""
    return both(values("tokenizer.json", **changes), tokenizer())


def both(*alterations):
    return lambda folder: [alter(folder) for alter in alterations]


def without(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def only(other):
    """Leaves the folder with a config of another model alone, beside the tokenizer."""
    return lambda folder: (folder / "config.json").write_text(other.to_json_string(use_diff=False))


def weights(change):
    def alter(folder):
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path, {"format": "pt"})

    return alter


def broken(tensors):
    tensors["encoder.layer.1.output.dense.weight"][3, 2] = torch.nan
    return tensors


def words_only(folder):
    rules(post_processor=None)(folder)


def no_unknown(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    model = content["model"] | {"unk_token": "[NONE]"}
    rules(model=model)(folder)


def added(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    token = {"special": False, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    extra = {"id": len(content["model"]["vocab"]), "content": "@user", **token}
    values("tokenizer.json", added_tokens=[*content["added_tokens"], extra])(folder)


def no_words(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    special = {token["content"]: token["id"] for token in content["added_tokens"]}
    values("tokenizer.json", model=content["model"] | {"vocab": special})(folder)


def ending_only(folder):
    special = {"[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}
    one, end = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}
    two = {"Sequence": {"id": "B", "type_id": 1}}
    processor = {"type": "TemplateProcessing", "single": [one, end], "pair": [one, end, two], "special_tokens": special}
    rules(post_processor=processor)(folder)


def adapter(folder):
    without("config.json", "model.safetensors")(folder)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": None}))


NONE = "no model there that can be read; must be a folder that holds one, or a hub id"
ODD = "its config is of no encoder"
OTHER = "its weights are of another architecture than its config"
LONG = "model_max_length"
MISFITS = {
    # -- lengths
    "positions, limit unknown": (both(config(max_position_embeddings=30), tokenizer(**{LONG: "gone"})), TEXT, "30"),
    "positions, limit wrong": (both(config(max_position_embeddings=30), tokenizer(**{LONG: 512})), TEXT, "30"),
    "limit below the positions": (tokenizer(**{LONG: 20}), TEXT, "20"),
    "roberta": (tokenizer(tokenizer_class="RobertaTokenizer", **{LONG: 512}), TEXT.replace("32", "129"), "128"),
    "latency": (
        config(max_position_embeddings=40),
        f"{TEXT} latency.length=41",
        "latency.length=41: must be at most 40",
    ),
    "no positions": (config(max_position_embeddings=0), TEXT, f"{ODD} (max_position_embeddings=0: must be a whole"),
    # -- ids
    "vocabulary too small": (config(vocab_size=30), TEXT, "vocab_size=30; must be at least "),
    "added tokens": (added, TEXT, "('@user'), its model has vocab_size="),
    "padding beyond the vocabulary": (config(pad_token_id=999), TEXT, f"{ODD} (pad_token_id=999: must be below"),
    "no vocabulary": (config(vocab_size=None), TEXT, NONE),
    # -- types
    "one type": (config(type_vocab_size=1), PAIRS, "type_vocab_size=1; must be at least 2, or data.columns one column"),
    "no types": (config(type_vocab_size=0), TEXT, "a bert model cannot be distilled or fine-tuned here"),
    # -- padding and special tokens
    "no padding": (tokenizer(pad_token=None), TEXT, "has no padding token; must have one"),
    "roberta's other padding": (
        config(pad_token_id=0),
        TEXT,
        "pads with 1, and its model counts positions from pad_tok",
    ),
    "no special tokens": (words_only, TEXT, "begins a row with its first word; must begin it with a special token"),
    "an ending alone": (ending_only, TEXT, "begins a row with its first word; must begin it with a special token"),
    "no unknown token": (no_unknown, TEXT, "its tokenizer cannot tokenize a text of any characters"),
    "no mask": (tokenizer(mask_token=None), f"{TEXT} data/masking=bert", "tokenizer has no mask token; must be null"),
    "no words": (no_words, TEXT, "no tokenizer there that can be read"),
    # -- files
    "no config": (without("config.json"), TEXT, NONE),
    "no weights": (without("model.safetensors"), TEXT, NONE),
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json"), TEXT, "no tokenizer there that can be read"),
    "no files": (without("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"), TEXT, NONE),
    "an adapter": (adapter, TEXT, NONE),
    "cut weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"{}"), TEXT, NONE),
    "cut tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        TEXT,
        "no tokenizer there that can be",
    ),
    # -- weights
    "wider config": (config(hidden_size=32), TEXT, OTHER),
    "deeper config": (config(num_hidden_layers=6), TEXT, OTHER),
    "shallower config": (config(num_hidden_layers=2), TEXT.replace("32", "32 architecture.num_hidden_layers=2"), OTHER),
    "other vocabulary": (config(vocab_size=4000), TEXT, OTHER),
    "other names": (weights(lambda given: {f"x.{name}": value for name, value in given.items()}), TEXT, OTHER),
    "NaN": (
        weights(broken),
        TEXT,
        "its weights are not finite (NaN or infinite in encoder.layer.1.output.dense.weight)",
    ),
    "quantized": (config(quantization_config={"quant_method": "gptq", "bits": 4}), TEXT, "its weights are quantized"),
    # -- sizes and names
    "odd heads": (config(num_attention_heads=3), TEXT, f"{ODD} (architecture.num_attention_heads=3: must divide"),
    "no layers": (config(num_hidden_layers=0), TEXT, f"{ODD} (architecture.num_hidden_layers=0: must be a whole"),
    "activation": (config(hidden_act="gellu"), TEXT, f"{ODD} (architecture.hidden_act=gellu: must be one of gelu"),
    "size in words": (config(hidden_size="big"), TEXT, "misfit: "),
    # -- families
    "family unknown": (config(model_type="evil", auto_map={"AutoConfig": "evil.Config"}), TEXT, NONE),
    "decoder": (only(GPT2Config()), TEXT, "a gpt2 model has no intermediate_size, hidden_act; use a BERT-like encoder"),
    "decoder by setting": (config(is_decoder=True), TEXT, "tokens do not attend to later ones; must be an encoder"),
    "both": (only(T5Config()), TEXT, "a t5 model has no intermediate_size, hidden_act; use a BERT-like encoder"),
    "pictures": (only(ViTConfig()), TEXT, ODD),
    "attention from the hub": (config(attn_implementation="evil/kernel"), TEXT, "asks for the attention evil/kernel"),
}
"""Alterations of a good teacher, by what is then wrong; with the words of the command and what it answers."""


@pytest.mark.parametrize("name", MISFITS)
def test_a_teacher_that_does_not_fit(name, tmp_path, teacher, roberta_teacher, refused, data):  # noqa: F811
    alter, words, says = MISFITS[name]
    folder = tmp_path / "misfit"
    shutil.copytree(roberta_teacher if name.startswith("roberta") else teacher, folder)
    alter(folder)
    told = refused("text", *words.split(), f"teacher.path={folder}", data=data)
    if says.isdecimal():
        says = f"must be at most the teacher's {says}"
    assert says in told
    assert told.startswith((f"teacher.path={folder}: ", "data.max_length=", "data.masking", "latency.length="))


@pytest.mark.parametrize(
    ("alter", "says"),
    [
        (config(vocab_size=30), "its weights are of another architecture"),
        (added, "its tokenizer gives ids up to"),
        (tokenizer(pad_token=None), "has no padding token"),
        (weights(broken), "its weights are not finite"),
        (config(type_vocab_size=1), "its weights are of another architecture"),
    ],
    ids=["vocabulary", "ids", "padding", "NaN", "types"],
)
def test_a_checkpoint_that_does_not_fit(alter, says, tmp_path, teacher, refused, data):  # noqa: F811
    folder = tmp_path / "misfit"
    shutil.copytree(teacher, folder)
    alter(folder)
    told = refused("finetune", f"checkpoint={folder}", "data.path={data}/good", data=data)
    assert told.startswith(f"checkpoint={folder}: ") and says in told
