"""Student sources: where the weights of a student's encoder begin. A config picks one (`conf/student/init`)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from kdnas.base.errors import ConfigError
from kdnas.base.files import reading
from kdnas.models.architecture import Architecture
from kdnas.models.building import check_encoder, fill, from_folder
from kdnas.models.checkpoints import is_checkpoint, unpack
from kdnas.models.families import architecture_of
from kdnas.models.loading import load_config

KEY = "student.init.source"
"""The setting that names a checkpoint to start from."""


class StudentSource(ABC):
    """Gives a new student's encoder its first weights; `origin` is the model that they come from, if any."""

    origin: str | None = None

    @abstractmethod
    def __call__(self, encoder: PreTrainedModel) -> None:
        """Changes the weights of an encoder, which are random: they depend on the seed alone."""


@dataclass(frozen=True)
class RandomWeights(StudentSource):
    """Keeps the random weights."""

    def __call__(self, encoder: PreTrainedModel) -> None:
        pass


@dataclass(frozen=True)
class PretrainedWeights(StudentSource):
    """Takes the weights of an encoder of the same architecture; poolers and heads stay random.

    Args:
        source: an encoder, a masked language model or a classifier: a Lightning checkpoint of kdnas (with several
            students, the first of the student's architecture is taken), a Hugging Face folder, or a hub id.

    Raises:
        ConfigError: (when called) a damaged file, or another family, architecture, vocabulary or number of positions.
    """

    source: str

    @property
    def origin(self) -> str:  # type: ignore[override]
        return self.source

    def __call__(self, encoder: PreTrainedModel) -> None:
        config, weights = _read(self.source, architecture_of(encoder.config))
        for name in ("model_type", *Architecture.__dataclass_fields__, "vocab_size", "max_position_embeddings"):
            found, needed = getattr(config, name), getattr(encoder.config, name)
            if found != needed:
                raise ConfigError(f"{KEY}={self.source}: its {name} is {found}; must be the student's {needed}")
        check_encoder(encoder, fill(encoder, weights), f"{KEY}={self.source}")


def _read(source: str, like: Architecture) -> tuple[PreTrainedConfig, dict[str, Tensor]]:
    if isinstance(source, str) and is_checkpoint(source):
        config, weights, _ = unpack(Path(source), key=KEY, like=like)
        return config, weights
    config = load_config(source, KEY)
    with reading(KEY, source):
        encoder, wrong = from_folder(AutoModel, source, config)
    check_encoder(encoder, wrong, f"{KEY}={source}")
    return config, encoder.state_dict()
