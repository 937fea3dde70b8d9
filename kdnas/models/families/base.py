"""The differences between model families, and the table of families by `model_type`."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel

from kdnas.base.errors import ConfigError, is_number, shown
from kdnas.models.architecture import Architecture

WORDS = 64
"""The vocabulary size of a tiny model, if it has room for the special tokens."""
SPECIAL = ("pad", "bos", "eos", "cls", "sep", "mask")
"""Special tokens, as configs name them: `pad_token_id`, ..."""


def head_size(architecture: Architecture) -> int:
    return architecture.hidden_size // architecture.num_attention_heads


class Family:
    """A model family whose configs and modules are named as BERT's; a subclass states what differs.

    Attributes:
        names: the config's own names for Hugging Face's, where the config class does not map them itself.
        derived: further sizes in the config that follow from the five values.
        usual: what a new config of the family has beside the defaults of its class.
        hidden_dropout, attention_dropout, classifier_dropout: the config's names of dropout probabilities.
        layers: the encoder's list of layers, as a dotted path below the model without its head.
        embeddings: the modules below the first layer, as dotted paths.
        projections: the modules of a layer that give its queries, keys and values, as dotted paths by kind; empty if
            no modules do. Used where transformers' class calls none of its registered attention functions.
        embeddings_projection: the linear layer from embeddings of a size of their own to the hidden size; None without.
        roles: a layer's other modules by role (`kdnas.models.initialisation.layers.Layer`), as dotted paths; empty if
            its layers are not as BERT's.
        attention_bias: the table of biases for distances that all layers share; None without.
        positions_after_padding: whether the table of positions begins after the padding token's id.
        plain_attention: whether a layer's attention is softmax(Q K^T / sqrt(head size)) V over its `window`, with
            nothing added or bounded, as a bias for each distance would be. Without it, there are no attention maps.
    """

    names: Mapping[str, str] = {}
    derived: Mapping[str, Callable[[Architecture], int]] = {
        "num_key_value_heads": lambda own: own.num_attention_heads,
        "head_dim": head_size,
    }
    usual: Mapping[str, Any] = {}
    hidden_dropout: tuple[str, ...] = ("hidden_dropout_prob",)
    attention_dropout: tuple[str, ...] = ("attention_probs_dropout_prob",)
    classifier_dropout: tuple[str, ...] = ("classifier_dropout", "classifier_dropout_prob")
    layers = "encoder.layer"
    embeddings: tuple[str, ...] = ("embeddings",)
    projections: Mapping[str, str] = {name: f"attention.self.{name}" for name in ("query", "key", "value")}
    embeddings_projection: str | None = None
    roles: Mapping[str, str] = {
        **{"attention_output": "attention.output.dense", "attention_norm": "attention.output.LayerNorm"},
        **{"intermediate": "intermediate.dense", "output": "output.dense", "output_norm": "output.LayerNorm"},
    }
    attention_bias: str | None = None
    positions_after_padding = False
    plain_attention = False

    # -- the config

    def architecture(self, config: PreTrainedConfig) -> Architecture:
        return Architecture.of({name: getattr(config, name) for name in Architecture.__dataclass_fields__})

    def resize(self, config: PreTrainedConfig, architecture: Architecture) -> PreTrainedConfig:
        """Returns a config with another architecture; sizes that are not `derived`, as an `embedding_size`, stay."""
        resized = copy.deepcopy(config)
        resized.update(architecture.to_dict() | {"dtype": "float32", "architectures": None})
        before = self.architecture(config)
        for name, derive in self.derived.items():
            if getattr(config, name, None) is not None and getattr(config, name) == derive(before):
                setattr(resized, name, derive(architecture))
        return resized

    def tiny(self, config: PreTrainedConfig, architecture: Architecture) -> PreTrainedConfig:
        """Returns a config of a tiny model of the family, with a vocabulary of little more than the special tokens."""
        small = self.resize(config, architecture)
        small.update({"_name_or_path": "", "transformers_version": None, "problem_type": None, "num_labels": 2})
        special = [getattr(config, f"{name}_token_id", None) for name in SPECIAL]
        small.vocab_size = max(WORDS, *(1 + token for token in special if isinstance(token, int)))
        return small

    def share(self, config: PreTrainedConfig, shared: bool) -> None:
        """Sets in a config whether all layers share their weights.

        Raises:
            ConfigError: the family has no such setting.
        """
        raise ConfigError.of("shared", f"={shown(shared)}: a {config.model_type} has no shared layers; must be null")

    def dropouts(self, config: PreTrainedConfig) -> dict[str, float]:
        """Returns every dropout probability in a config, by its name there."""
        names = (*self.hidden_dropout, *self.attention_dropout, *self.classifier_dropout)
        return {name: getattr(config, name) for name in names if is_number(getattr(config, name, None))}

    def first_position(self, config: PreTrainedConfig) -> int:
        """Returns the index of a row's first token in the table of positions."""
        return 0

    def positions(self, config: PreTrainedConfig) -> float:
        """Returns the longest input in tokens; infinite without a table of absolute positions."""
        table = getattr(config, "max_position_embeddings", None)
        return math.inf if table is None else table - self.first_position(config)

    def token_types(self, config: PreTrainedConfig) -> int:
        """Returns the number of token types (segments); 0 if the model takes no `token_type_ids`, or ignores them."""
        return getattr(config, "type_vocab_size", None) or 0

    # -- attention

    def head_size(self, config: PreTrainedConfig) -> int:
        """Returns the width of an attention head's queries and keys."""
        return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def window(self, config: PreTrainedConfig, layer: int) -> int | None:
        """Returns how far from itself a token attends in a layer (the first is 1); None if to the whole row."""
        return None

    def calls_attention(self, config: PreTrainedConfig) -> bool:
        """Returns whether transformers' class calls a registered attention function; others compute attention."""
        return bool(getattr(MODEL_MAPPING.get(type(config), None), "_supports_attention_backend", False))

    def gives_attention_inputs(self, config: PreTrainedConfig) -> bool:
        """Returns whether queries, keys and values can be had of a config's model."""
        return self.calls_attention(config) or bool(self.projections)

    def check_attention_inputs(self, config: PreTrainedConfig) -> None:
        """Refuses (by a ConfigError) a config whose model gives no queries, keys and values."""
        if not self.gives_attention_inputs(config):
            raise ConfigError(f"objective: needs queries, keys or values; a {config.model_type} model gives none")

    def watch(self, layer: nn.Module, keep: Callable[[str, Tensor], None]) -> list[RemovableHandle]:
        """Registers hooks on a layer that pass its queries, keys and values to `keep`, by kind, as they are computed.

        They are (rows, tokens, heads * head size). The first of a kind counts: a module may run again, on other inputs
        (DeBERTa's on relative positions).
        """
        return [
            layer.get_submodule(path).register_forward_hook(lambda _, __, output, kind=kind: keep(kind, output))
            for kind, path in self.projections.items()
        ]

    # -- modules

    def blocks(self, model: PreTrainedModel) -> list[list[nn.Module]]:
        """Returns what a classifier's training unfreezes one after the other: the last layer first, embeddings last.

        Raises:
            AttributeError: the model's modules have other names.
        """
        encoder: Any = model.base_model
        layers: Iterable[nn.Module] = encoder.get_submodule(self.layers)
        return [*([layer] for layer in reversed([*layers])), [encoder.get_submodule(path) for path in self.embeddings]]

    def averages(self, config: PreTrainedConfig) -> bool:
        """Returns whether a classifier reads the mean of a row's states, and not the state of its first token."""
        return False

    def apply_head(self, model: PreTrainedModel, states: Tensor) -> Tensor:
        """Applies a model's pooler and head to states, (masked tokens, width) or, one for each row, (rows, 1, width).

        Returns the logits, (masked tokens, vocabulary) or (rows, classes).
        """
        pooler = getattr(model.base_model, "pooler", None)
        if pooler is not None:
            states = pooler(states)
        for name, part in model.named_children():
            if name != model.base_model_prefix:
                states = part(states)
        return states


FAMILIES: dict[str, Family] = {}
DEFAULT = Family()
Kind = TypeVar("Kind", bound=type[Family])


def register(*model_types: str) -> Callable[[Kind], Kind]:
    """Enters a subclass of `Family` into the table, under each `model_type` of its configs. Used as a decorator."""

    def enter(kind: Kind) -> Kind:
        FAMILIES.update(dict.fromkeys(model_types, kind()))
        return kind

    return enter


def family_of(config: PreTrainedConfig) -> Family:
    """Returns a config's family; one that is not in the table is taken to be like BERT (`kdnas.models.trial` tests it).

    The config class is taught the family's names, so that `config.hidden_size` and the like work for every family.
    """
    family, kind = FAMILIES.get(config.model_type, DEFAULT), type(config)
    if not family.names.items() <= kind.attribute_map.items():
        kind.attribute_map = {**kind.attribute_map, **family.names}
    return family


def architecture_of(config: PreTrainedConfig) -> Architecture:
    return family_of(config).architecture(config)
