"""The weights of a model of the student's own architecture."""

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
from kdnas.models.initialisation.source import StudentSource, TeacherAndText
from kdnas.models.loading import load_config

KEY = "student.init.source"
"""The setting that names a checkpoint to start from."""
SAME = ("model_type", *Architecture.__dataclass_fields__, "vocab_size", "max_position_embeddings")
"""The values of a config in which a student must agree with the model that it starts from."""


@dataclass(frozen=True)
class PretrainedWeights(StudentSource):
    """Takes the weights of an encoder of the same architecture; poolers and heads stay random.

    Args:
        source: an encoder, a masked language model or a classifier: a Lightning checkpoint of kdnas (with several
            students, the first of the student's architecture is taken), a Hugging Face folder, or a hub id.

    Raises:
        ConfigError: another family, architecture, vocabulary or number of positions; (when called) a damaged file.
    """

    source: str
    needs_text = False

    @property
    def origin(self) -> str:  # type: ignore[override]
        return self.source

    def check(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
        config, _ = _read(self.source, architecture_of(student))
        self._compare(config, student)

    def __call__(self, encoder: PreTrainedModel, known: TeacherAndText | None = None) -> None:
        config, weights = _read(self.source, architecture_of(encoder.config))
        self._compare(config, encoder.config)
        check_encoder(encoder, fill(encoder, weights), f"{KEY}={self.source}")

    def _compare(self, config: PreTrainedConfig, student: PreTrainedConfig) -> None:
        for name in SAME:
            found, needed = getattr(config, name), getattr(student, name)
            if found != needed:
                raise ConfigError(f"{KEY}={self.source}: its {name} is {found}; must be the student's {needed}")


def _read(source: str, like: Architecture) -> tuple[PreTrainedConfig, dict[str, Tensor]]:
    if isinstance(source, str) and is_checkpoint(source):
        config, weights, _ = unpack(Path(source), key=KEY, like=like)
        return config, weights
    config = load_config(source, KEY)
    with reading(KEY, source):
        encoder, wrong = from_folder(AutoModel, source, config)
    check_encoder(encoder, wrong, f"{KEY}={source}")
    return config, encoder.state_dict()
