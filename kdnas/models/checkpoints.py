"""Lightning checkpoints that hold their students' configs and tokenizer, and models that start from them."""

import json
import logging
import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from kdnas.base.errors import ConfigError, require, require_switch, require_whole
from kdnas.base.files import reading
from kdnas.models.architecture import Architecture
from kdnas.models.building import DATA, check_encoder, fill, from_folder
from kdnas.models.families import architecture_of
from kdnas.models.heads import Classifier
from kdnas.models.loading import check_config, load_config, load_tokenizer

log = logging.getLogger(__name__)
PACK = "kdnas"
"""The key under which a Lightning checkpoint describes the Hugging Face models whose weights it holds."""


def pack(models: dict[str, PreTrainedModel], tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns, for `PACK`, the configs as JSON by the prefix of each model's weights, and the tokenizer's files."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {path.name: _content(path.read_bytes()) for path in Path(folder).iterdir() if path.is_file()}
    return {
        "configs": {prefix: model.config.to_json_string(False) for prefix, model in models.items()},
        "tokenizer": files,
    }


def _content(file: bytes) -> str | Tensor:
    try:
        return file.decode()
    except UnicodeDecodeError:  # a binary file, as a sentencepiece model
        return torch.frombuffer(bytearray(file), dtype=torch.uint8)


def read(path: Path, key: str = "checkpoint") -> dict[str, Any]:
    """Reads a Lightning checkpoint with `weights_only=True`, so that no code in it is run."""
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
    path: Path, student: int | None = None, key: str = "checkpoint", like: Architecture | None = None
) -> tuple[PreTrainedConfig, dict[str, Tensor], Tokenizer]:
    """Reads the config, weights and tokenizer of one of the Hugging Face models in a Lightning checkpoint.

    With `student=None` it is the first one, or the first of the architecture `like`; `key` is the setting to blame.
    """
    checkpoint = read(path, key)
    if PACK not in checkpoint:
        raise ConfigError(f"{key}={path}: not a checkpoint of kdnas (it names no Hugging Face model)")
    with reading(key, path, "student", "a whole checkpoint of kdnas"):
        there = architectures(checkpoint, key, path)
    listed = ", ".join(f"{i} {architecture}" for i, architecture in enumerate(there))
    if student is None:
        student = there.index(like) if like in there else 0
        if len(there) > 1 and like is None:
            log.info("%s holds the students %s; taking %d, or another by module.source.student", path, listed, student)
    require(student < len(there), "student", student, f"the number of a student in {path}: {listed}")
    with reading(key, path, "student", "a whole checkpoint of kdnas"), tempfile.TemporaryDirectory() as folder:
        prefix, text = list(checkpoint[PACK]["configs"].items())[student]
        weights = {
            name[len(prefix) :]: value for name, value in checkpoint["state_dict"].items() if name.startswith(prefix)
        }
        for name, content in checkpoint[PACK]["tokenizer"].items():
            if not name or name != Path(name).name or name == "..":
                raise ConfigError(f"{key}={path}: not a checkpoint of kdnas (a tokenizer's file called {name!r})")
            (Path(folder) / name).write_bytes(content.encode() if isinstance(content, str) else bytes(content.tolist()))
        return _config(text, key, path), weights, AutoTokenizer.from_pretrained(folder, **DATA)


def architectures(
    checkpoint: dict[str, Any], key: str = "paths.output", path: object = "last.ckpt"
) -> list[Architecture]:
    """Returns the architectures of the models in a checkpoint (see `read`); none if it is not of kdnas."""
    texts = checkpoint.get(PACK, {"configs": {}})["configs"].values()
    return [architecture_of(_config(text, key, path)) for text in texts]


def _config(text: str, key: str, path: object) -> PreTrainedConfig:
    values = json.loads(text)
    return check_config(AutoConfig.for_model(values.pop("model_type"), **values), key, str(path))


class ModelSource(ABC):
    """Gives fine-tuning its model and the tokenizer; `origin` is the model that it is made from, if any."""

    origin: str | None = None

    @abstractmethod
    def __call__(self, head: Classifier) -> tuple[PreTrainedModel, Tokenizer]:
        """Makes the model with a task's head."""


@dataclass(frozen=True)
class Pretrained(ModelSource):
    """A pretrained encoder.

    Args:
        source: a Lightning checkpoint of kdnas, a Hugging Face folder, or a hub id.
        random: whether to keep random weights: a baseline without distillation.
        student: the index of one of several students in a checkpoint.

    Raises:
        ConfigError: (when called) a missing or damaged file, or weights of another architecture than the config's.
    """

    source: str
    random: bool = False
    student: int | None = None

    def __post_init__(self) -> None:
        fits = isinstance(self.source, str) and bool(self.source)
        require(fits, "source", self.source, "a checkpoint of kdnas, a Hugging Face folder or a hub id")
        require_switch("random", self.random)
        require_whole("student", self.student or 0, 0)
        fits = self.student is None or is_checkpoint(self.source)
        require(fits, "student", self.student, f"null: {self.source} is no checkpoint of several")

    @property
    def origin(self) -> str:  # type: ignore[override]
        return self.source

    def __call__(self, head: Classifier) -> tuple[PreTrainedModel, Tokenizer]:
        source, weights = self.source, None
        if is_checkpoint(source):
            config, weights, tokenizer = unpack(Path(source), self.student)
        else:
            config, tokenizer = load_config(source, "checkpoint"), load_tokenizer(source, "checkpoint")
        head.describe(config)
        if self.random or weights is not None:
            model = head.make(config)
            wrong = [] if self.random else fill(model, weights or {})
        else:
            with reading("checkpoint", source):
                model, wrong = from_folder(head.auto, source, config)
        check_encoder(model, wrong, f"checkpoint={source}")
        return model, tokenizer


def is_checkpoint(source: str) -> bool:
    """Returns whether a model's source is a Lightning checkpoint, and not a folder or a hub id."""
    return source.endswith(".ckpt") or Path(source).is_file()
