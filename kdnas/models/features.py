"""Features: the values that models, the teacher cache and loss terms exchange."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from torch import Tensor
from transformers import PreTrainedConfig

from kdnas.models.families import family_of


class Kind(StrEnum):
    """The kinds of features; queries, keys and values are what a layer's attention takes, all heads side by side."""

    HIDDEN_STATE = "hidden_state"
    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    LOGITS = "logits"


ATTENTION_INPUTS = (Kind.QUERY, Kind.KEY, Kind.VALUE)


class Per(StrEnum):
    """The items that a feature has one vector each for; padding is never included."""

    TOKEN = "token"
    FIRST_TOKEN = "first_token"
    MASKED_TOKEN = "masked_token"
    ROW = "row"


@dataclass(frozen=True, order=True)
class Feature:
    """A tensor that a model computes for a batch, (items, width).

    Layers count from 1; 0 is the embedding output (a hidden state), and for logits.
    """

    kind: Kind
    layer: int = 0
    per: Per = Per.TOKEN

    def __post_init__(self) -> None:
        allowed = (Per.ROW, Per.MASKED_TOKEN) if self.kind is Kind.LOGITS else (Per.TOKEN, Per.FIRST_TOKEN)
        if self.per not in allowed:
            raise ValueError(f"{self.kind} per {self.per}: must be per {' or '.join(allowed)}")

    @property
    def name(self) -> str:
        """A name that is unique among features, as `hidden_state-04-token`."""
        return f"{self.kind}-{self.layer:02d}-{self.per}"

    def width(self, config: PreTrainedConfig) -> int:
        """Returns the number of values for each item, for a model with the given config."""
        if self.kind is Kind.HIDDEN_STATE:
            return config.hidden_size
        if self.kind is Kind.LOGITS:
            return int(config.vocab_size if self.per is Per.MASKED_TOKEN else config.num_labels or 0)
        grouped = None if self.kind is Kind.QUERY else getattr(config, "num_key_value_heads", None)
        return (grouped or config.num_attention_heads) * family_of(config).head_size(config)


Features: TypeAlias = Mapping[Feature, Tensor]
LOGITS = Feature(Kind.LOGITS, per=Per.ROW)
"""The logits of a classifier, (rows, classes)."""
MASKED_LOGITS = Feature(Kind.LOGITS, per=Per.MASKED_TOKEN)
"""The logits of a masked language model for the tokens to predict, (masked tokens, vocabulary)."""


def hidden_state(layer: int, per: Per = Per.TOKEN) -> Feature:
    return Feature(Kind.HIDDEN_STATE, layer, per)
