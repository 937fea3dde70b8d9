"""Tiny teachers and data that the tests share."""

import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # no test reaches out; a path that is not there is refused at once
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # searches run beside each other here: their threads must not spin

import datasets
import pytest
import tokenizers
import torch
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel, RobertaTokenizer

from kdnas.base.host import QuietHost
from kdnas.costs import CostModel
from kdnas.datamodules import grammar
from kdnas.datamodules.synthetic import UNLIKE_OTHERS

torch.set_num_threads(1)

LENGTH = 128
SIZES = {"num_hidden_layers": 4, "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 32}


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What `datasets` keeps goes to a folder that pytest clears away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        datasets.disable_progress_bars()
        yield


@pytest.fixture(scope="session", autouse=True)
def own_host(tmp_path_factory):
    """Locks of the tests' own: searches that run beside them are neither waited for nor held up."""
    folder, original = tmp_path_factory.mktemp("locks"), QuietHost.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QuietHost, "__init__", lambda self, other=None: original(self, other or folder))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_patience():
    """Searches in this process take the host as it is: they wait for no other program to end."""
    original = CostModel.__init__

    def impatient(self, *arguments, **named):
        original(self, *arguments, **named)
        self.patience = 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CostModel, "__init__", impatient)
        yield


def save_teacher(model, tokenizer, folder: Path) -> str:
    for name, weight in model.named_parameters():
        if "LayerNorm" in name:  # or all layers would have states of the same size
            torch.nn.init.normal_(weight, mean=float(name.endswith("weight")), std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # Wide random weights make its layers differ; a student that takes over its config starts from the usual ones.
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"initializer_range": 0.02}))
    return str(folder)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> str:
    """A random BERT over the grammar's words: 4 layers, hidden 16, 4 heads, FFN 32."""
    tokenizer = grammar.tokenizer(max_length=LENGTH)
    torch.manual_seed(1)
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=LENGTH, initializer_range=0.3, **SIZES)
    return save_teacher(BertModel(config), tokenizer, tmp_path_factory.mktemp("teacher") / "bert")


@pytest.fixture(scope="session")
def teach():
    """Makes a random classifier better than chance on the grammar: fits its last layer to labelled pairs.

    `teach(model, tokenizer, pairs)`, by ridge regression: it knows these pairs, and the first nine held-out ones of the
    built-in task.
    """

    @torch.no_grad()
    def fit(model, tokenizer, pairs=()) -> None:
        pairs = [*pairs, *grammar.pairs(9, UNLIKE_OTHERS)]
        texts = ([pair[name] for pair in pairs] for name in ("premise", "hypothesis"))
        features = model.eval().base_model(**tokenizer(*texts, padding=True, return_tensors="pt")).pooler_output
        labels = torch.nn.functional.one_hot(torch.tensor([pair["label"] for pair in pairs]))
        x = torch.nn.functional.pad(features, (0, 1), value=1.0).double()
        fitted = torch.linalg.solve(x.T @ x + 1e-3 * torch.eye(x.shape[1]), x.T @ (labels.double() - 1 / 3))
        model.classifier.weight.copy_(4 * fitted[:-1].T)
        model.classifier.bias.copy_(4 * fitted[-1])

    return fit


@pytest.fixture(scope="session")
def roberta_teacher(tmp_path_factory) -> str:
    """The same as a RoBERTa, with a byte-level BPE trained on the grammar's words."""
    folder = tmp_path_factory.mktemp("teacher") / "roberta"
    pieces = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    words = [" " + word for word in grammar.vocabulary()]
    pieces.train_from_iterator(words, vocab_size=400, show_progress=False, special_tokens=special)
    folder.mkdir()
    vocab, merges = pieces.save_model(str(folder))
    tokenizer = RobertaTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)
    torch.manual_seed(2)
    positions = LENGTH + 2  # the first two are the padding's
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=positions, initializer_range=0.3, **SIZES)
    return save_teacher(RobertaModel(config), tokenizer, folder)


@pytest.fixture(scope="session")
def text_dataset(tmp_path_factory) -> str:
    """60 training and 20 held-out pairs of the grammar, in a folder as `datasets.load_dataset` reads it."""
    folder = tmp_path_factory.mktemp("data") / "pairs"
    folder.mkdir()
    pairs = grammar.pairs(80, seed=5)
    for name, rows in (("train", pairs[:60]), ("validation", pairs[60:])):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(folder)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real data and models, for the tests that want them."""
    folder = Path(os.environ.get("KDNAS_DATA", Path(__file__).resolve().parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; KDNAS_DATA names its folder")
    return folder
