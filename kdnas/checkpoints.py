"""Students on disk: Lightning checkpoints that carry their config and tokenizer, and Hugging Face folders."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer

from kdnas.architecture import Architecture
from kdnas.disk import writing
from kdnas.errors import ConfigError, require, require_switch, require_whole
from kdnas.models import (
    DATA,
    WEIGHTS,
    architecture_of,
    check_config,
    load_config,
    load_tokenizer,
    reading,
)

PACK = "kdnas"
"""The key under which a Lightning checkpoint describes the Hugging Face models whose weights it holds."""
EXPORTED = {
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
}
"""What transformers writes of an encoder and its tokenizer."""


def pack(models: dict[str, PreTrainedModel], tokenizer: Tokenizer) -> dict[str, Any]:
    """What `on_save_checkpoint` stores under `PACK`, as plain strings.

    Args:
        models: each by the prefix of its weights in the Lightning module's state dict.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_text(encoding="utf-8") for path in Path(folder).iterdir() if path.is_file()}
    return {
        "configs": {prefix: model.config.to_json_string(False) for prefix, model in models.items()},
        "tokenizer": files,
    }


def read(path: Path, key: str = "checkpoint") -> dict[str, Any]:
    """A Lightning checkpoint, read as data: nothing in it is executed."""
    if not path.is_file():
        raise ConfigError(f"{key}={path}: no such file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the reader raise anything
        raise ConfigError(f"{key}={path}: not a whole checkpoint (truncated, damaged, or holding code)") from error
    weights = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ConfigError(f"{key}={path}: not a Lightning checkpoint (it has no state_dict of tensors)")
    return checkpoint


def unpack(
    path: Path, student: int = 0, key: str = "checkpoint"
) -> tuple[PreTrainedConfig, dict[str, Tensor], Tokenizer]:
    """Config, weights and tokenizer of one of the Hugging Face models in a Lightning checkpoint."""
    checkpoint = read(path, key)
    if PACK not in checkpoint:
        raise ConfigError(f"{key}={path}: not a checkpoint of kdnas (it names no Hugging Face model)")
    with reading(key, path, "student", "a whole checkpoint of kdnas"), tempfile.TemporaryDirectory() as folder:
        prefix, text = list(checkpoint[PACK]["configs"].items())[student]
        weights = {
            name[len(prefix) :]: value for name, value in checkpoint["state_dict"].items() if name.startswith(prefix)
        }
        for name, content in checkpoint[PACK]["tokenizer"].items():
            if not name or name != Path(name).name or name == "..":
                raise ConfigError(f"{key}={path}: not a checkpoint of kdnas (a tokenizer's file called {name!r})")
            (Path(folder) / name).write_text(content, encoding="utf-8")
        return _config(text, key, path), weights, AutoTokenizer.from_pretrained(folder, **DATA)


def architectures(checkpoint: dict[str, Any]) -> list[Architecture]:
    """Of the Hugging Face models in a Lightning checkpoint that was read; of none if it is not one of kdnas."""
    texts = checkpoint.get(PACK, {"configs": {}})["configs"].values()
    return [architecture_of(_config(text, "paths.output", "last.ckpt")) for text in texts]


def _config(text: str, key: str, path: object) -> PreTrainedConfig:
    values = json.loads(text)
    return check_config(AutoConfig.for_model(values.pop("model_type"), **values), key, str(path))


def load_classifier(source: str, num_labels: int, random: bool = False) -> tuple[PreTrainedModel, Tokenizer]:
    """A sequence classifier (or, with one label, a regressor) on a distilled or pre-trained encoder, and its tokenizer.

    Args:
        source: a Lightning checkpoint of kdnas, a Hugging Face folder, or a hub id.
        random: leave the weights at their random start: the same student without distillation.

    Raises:
        ConfigError: nothing there, a damaged file, or weights of another architecture than the config's.
    """
    weights: dict[str, Tensor] | None = None
    fits = isinstance(source, str) and bool(source)
    require(fits, "checkpoint", source, "a checkpoint of kdnas, a Hugging Face folder or a hub id")
    require_switch("module.source.random", random)
    require_whole("task.num_labels", num_labels, 1)
    if _is_checkpoint(source):
        config, weights, tokenizer = unpack(Path(source))
    else:
        config, tokenizer = load_config(source, "checkpoint"), load_tokenizer(source, "checkpoint")
    config.num_labels = num_labels
    config.problem_type = "regression" if num_labels == 1 else "single_label_classification"
    if random or weights is not None:
        model = AutoModelForSequenceClassification.from_config(config)
        wrong = [] if random else _fill(model, weights or {})
    else:
        model, wrong = _from_folder(AutoModelForSequenceClassification, source, config, "checkpoint")
    _check_encoder(model, wrong, f"checkpoint={source}")
    return model, tokenizer


def load_encoder_into(model: PreTrainedModel, source: str, key: str = "module.initial") -> None:
    """Gives an encoder the weights of another one of the same architecture; poolers and heads are left out.

    Args:
        model: as `kdnas.models.new_encoder` makes it.
        source: an encoder, a masked language model or a classifier: a Lightning checkpoint of kdnas (its first model),
            a Hugging Face folder, or a hub id.
        key: the setting to blame.

    Raises:
        ConfigError: nothing there, a damaged file, or another family, architecture, vocabulary or number of positions.
    """
    if _is_checkpoint(source):
        config, weights, _ = unpack(Path(source), key=key)
    else:
        config = load_config(source, key)
        encoder, wrong = _from_folder(AutoModel, source, config, key)
        _check_encoder(encoder, wrong, f"{key}={source}")
        weights = encoder.state_dict()
    for name in ("model_type", *Architecture.__dataclass_fields__, "vocab_size", "max_position_embeddings"):
        theirs, ours = getattr(config, name), getattr(model.config, name)
        if theirs != ours:
            raise ConfigError(f"{key}={source}: its {name} is {theirs}; must be the student's {ours}")
    _check_encoder(model, _fill(model, weights), f"{key}={source}")


def _is_checkpoint(source: str) -> bool:
    return source.endswith(".ckpt") or Path(source).is_file()


def _fill(model: PreTrainedModel, weights: dict[str, Tensor]) -> list[str]:
    """Copies weights, of an encoder or of one with a head, into a model that is either; returns what did not fit.

    The names are the model's own.
    """
    encoder = f"{model.base_model_prefix}."
    whole, bare = any(name.startswith(encoder) for name in weights), model.base_model is model
    if bare and whole:
        named = {name.removeprefix(encoder): value for name, value in weights.items() if name.startswith(encoder)}
    elif bare or whole:
        named = weights
    else:
        named = {f"{encoder}{name}": value for name, value in weights.items()}
    own = model.state_dict()
    fitting = {name: value for name, value in named.items() if name in own and own[name].shape == value.shape}
    model.load_state_dict(fitting, strict=False)
    return sorted((own.keys() | named.keys()) - fitting.keys())


def _from_folder(auto: Any, source: str, config: PreTrainedConfig, key: str) -> tuple[PreTrainedModel, list[str]]:
    """A model of one of the Auto classes with a folder's or hub id's weights, and the names that did not fit."""
    with reading(key, source):
        model, report = auto.from_pretrained(
            source, config=config, ignore_mismatched_sizes=True, output_loading_info=True, **WEIGHTS
        )
    mismatched = [entry[0] if isinstance(entry, tuple) else entry for entry in report["mismatched_keys"]]
    return model, [*mismatched, *report["missing_keys"], *report["unexpected_keys"]]


def _check_encoder(model: PreTrainedModel, wrong: Sequence[str], source: str) -> None:
    """Refuses weights if any of the encoder's did not fit; heads and poolers may be of any kind."""
    encoder = f"{model.base_model_prefix}."
    parts = tuple(f"{name}." for name, _ in model.base_model.named_children() if name != "pooler")
    # Transformers names what is missing as the model does, and what is left over as the file does.
    wrong = sorted({name for name in wrong if name.removeprefix(encoder).startswith(parts)})
    if wrong:
        raise ConfigError(
            f"{source}: its weights are of another architecture than its config "
            f"({len(wrong)} tensors do not fit, the first is {wrong[0]})"
        )


def check_export(folder: Path) -> None:
    """An export replaces an earlier one, or those of a gang, and nothing else."""
    there = list(folder.iterdir()) if folder.is_dir() else [folder] if folder.exists() else []
    gang = all(path.is_dir() and path.name.isdecimal() for path in there)
    models = there if gang else [folder]
    if there and not all(_is_export(model) for model in models):
        raise ConfigError(f"paths.export={folder}: holds something that is not a model; must be empty or not there")


def _is_export(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return "config.json" in names and names <= EXPORTED


def export(model: PreTrainedModel, tokenizer: Tokenizer, folder: Path) -> Path:
    """Writes a folder that transformers' `from_pretrained` loads, model and tokenizer; whole or not at all."""
    check_export(folder)
    folder = folder.resolve()  # not the link that it may be
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fresh.chmod(0o755)
        with writing(fresh, size=sum(weight.nbytes for weight in model.state_dict().values())):
            model.save_pretrained(fresh)
            tokenizer.save_pretrained(fresh)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder
