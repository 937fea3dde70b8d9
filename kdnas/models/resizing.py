"""Students' configs: the teacher's family, or another one, with another architecture.

What a family resizes is in `families/base.py`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.activations import ACT2FN

from kdnas.base.errors import ConfigError, mounted, require, require_switch, require_whole, shown
from kdnas.models.architecture import Architecture
from kdnas.models.families import family_of
from kdnas.models.families.base import FAMILIES, SPECIAL
from kdnas.models.trial import refusal


@dataclass(frozen=True)
class StudentFamily:
    """The model family of the students.

    Args:
        family: a `model_type`, as `bert`; None for the teacher's.
        shared: whether all layers of a student share their weights, in a family with that setting (ALBERT); None for
            as many shared layers as the teacher has, or a new config of `family`.
        max_length: the tokens that a student of another family must take at least.

    Raises:
        ConfigError: an unknown family, or one whose models cannot be distilled.
    """

    family: str | None = None
    shared: bool | None = None
    max_length: int = 512

    def __post_init__(self) -> None:
        known = sorted(FAMILIES.keys() & CONFIG_MAPPING.keys())
        require(self.family in (None, *known), "family", self.family, f"null or one of {', '.join(known)}")
        if self.shared is not None:
            require_switch("shared", self.shared)
        require_whole("max_length", self.max_length, 1)

    def config(self, teacher: PreTrainedConfig) -> PreTrainedConfig:
        """Returns the config that students are resized from: the teacher's, or a new one that takes the same rows.

        A new one has the teacher's vocabulary, special tokens, dropout and classes, and as many positions and token
        types as rows need.
        """
        if self.family in (None, teacher.model_type):
            return teacher
        config: PreTrainedConfig = CONFIG_MAPPING[self.family]()
        old, new = family_of(teacher), family_of(config)
        tokens = {f"{name}_token_id": getattr(teacher, f"{name}_token_id", None) for name in SPECIAL}
        labels = {"id2label": teacher.id2label, "label2id": teacher.label2id, "problem_type": teacher.problem_type}
        config.update({**new.usual, "vocab_size": teacher.vocab_size, **tokens, **labels})
        for names, theirs in ((new.hidden_dropout, old.hidden_dropout), (new.attention_dropout, old.attention_dropout)):
            found = (value for name, value in old.dropouts(teacher).items() if name in theirs)
            config.update(dict.fromkeys(names, next(found, 0.0)))
        pad = config.pad_token_id
        if new.positions_after_padding and (pad is None or pad > self.max_length):
            begin = f"positions begin after the padding token's id, which is {shown(pad)} here"
            raise ConfigError.of("family", f"={self.family}: {begin}; must be another, as bert")
        if new.positions(config) < self.max_length:
            config.max_position_embeddings = self.max_length + new.first_position(config)
        if 0 < new.token_types(config) < old.token_types(teacher):
            config.type_vocab_size = old.token_types(teacher)
        if why := refusal(config):
            raise ConfigError.of("family", f"={self.family}: must be one that can be distilled ({why})")
        return config


def student_config(
    teacher: PreTrainedConfig, architecture: Architecture, family: StudentFamily | None = None
) -> PreTrainedConfig:
    """Returns a student's config; in the teacher's family it is the teacher's with the student's architecture.

    Raises:
        ConfigError: an unknown activation, or layers that cannot be shared.
    """
    check_activation(architecture.hidden_act)
    family = family or StudentFamily()
    with mounted("student"):
        config = family.config(teacher)
        resized = family_of(config).resize(config, architecture)
        if family.shared is not None:
            family_of(config).share(resized, family.shared)
    return resized


def with_padding(config: PreTrainedConfig, tokenizer: Tokenizer) -> PreTrainedConfig:
    """Returns a config with its tokenizer's padding token, whose embedding a model does not train."""
    padded, token = copy.deepcopy(config), tokenizer.pad_token_id
    if token is not None and token < config.vocab_size:
        padded.pad_token_id = token
    return padded


def check_activation(name: str) -> None:
    if name not in ACT2FN:
        raise ConfigError(f"architecture.hidden_act={name}: must be one of {', '.join(sorted(ACT2FN))}")
