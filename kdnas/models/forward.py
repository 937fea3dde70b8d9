"""The forward pass: a model runs on a batch's real tokens, without padding, if its family can; and gives features."""

import copy
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass
from inspect import signature
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import MODEL_FOR_MASKED_LM_MAPPING, BatchEncoding, PreTrainedConfig, PreTrainedModel

from kdnas.base.errors import ConfigError
from kdnas.models.architecture import Architecture
from kdnas.models.attention import Attention, packed, recorded
from kdnas.models.families import family_of
from kdnas.models.features import ATTENTION_INPUTS, LOGITS, MASKED_LOGITS, Feature, Kind, Per, hidden_state
from kdnas.models.packing import MODEL_INPUTS, Layout

Encoder = Callable[..., Any]


@dataclass(frozen=True)
class Way:
    """A way to run a model: on packed or padded rows; with its head on needed states alone, or by the model itself."""

    packed: bool
    head_apart: bool


WAYS = (Way(True, True), Way(False, True), Way(False, False))
"""The ways to run a model, the fastest first. The last is transformers' own."""


def outputs(
    model: PreTrainedModel, batch: BatchEncoding, features: Collection[Feature], compiled: Encoder | None = None
) -> dict[Feature, Tensor]:
    """Runs an encoder, a sequence classifier or a masked language model on a batch.

    Args:
        features: what to return, as (items, width) each.
        compiled: the model's encoder, compiled with dynamic shapes. It calls no hooks, which give the queries, keys and
            values of families without one of transformers' attention functions.

    Raises:
        ConfigError: the model has no logits, or is of a family that gives no queries, keys and values.
    """
    return _run(model, batch, features, _way(model), compiled)


def has_head(model: PreTrainedModel) -> bool:
    return model.base_model is not model


def is_masked_lm(model: PreTrainedModel) -> bool:
    """Returns whether a model is a masked language model."""
    return type(model) is MODEL_FOR_MASKED_LM_MAPPING.get(type(model.config), None)


def _run(
    model: PreTrainedModel,
    batch: BatchEncoding,
    features: Collection[Feature],
    way: Way,
    compiled: Encoder | None = None,
) -> dict[Feature, Tensor]:
    kinds = {feature.kind for feature in features}
    if Kind.LOGITS in kinds and not has_head(model):
        raise ConfigError(f"objective: needs logits; a {type(model).__name__} has none")
    if LOGITS in features and is_masked_lm(model):
        raise ConfigError("objective: needs logits of rows; a masked language model has those of masked tokens")
    family, layout, hidden = family_of(model.config), Layout.of(batch), Kind.HIDDEN_STATE in kinds
    attention = Attention(model.config, features, layout.runs)
    encoder = model.base_model if compiled is None else compiled
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    if not family.token_types(model.config):
        inputs.pop("token_type_ids", None)
    if way.packed:
        del inputs["attention_mask"]
        inputs = {name: values.flatten()[layout.real][None] for name, values in inputs.items()}
        inputs["position_ids"] = (layout.positions + family.first_position(model.config))[None]
        with packed(model.config, attention):
            result = encoder(**inputs, output_hidden_states=hidden)
    else:
        whole = LOGITS in features or (MASKED_LOGITS in features and not way.head_apart)
        with recorded(model, attention) if attention.wanted else nullcontext():
            result = (model if whole else encoder)(**inputs, output_hidden_states=hidden)
    done = _Pass(model, batch, layout, way.packed, result, attention)
    return {feature: done.value(feature) for feature in sorted(features)}


@dataclass(frozen=True)
class _Pass:
    """The result of a forward pass, on packed or padded rows: the encoder's or, with `logits`, the whole model's."""

    model: PreTrainedModel
    batch: BatchEncoding
    layout: Layout
    packed: bool
    result: Any
    attention: Attention

    def value(self, feature: Feature) -> Tensor:
        if feature.kind is Kind.LOGITS:
            return self.masked_logits if feature == MASKED_LOGITS else self.logits
        if feature.kind is Kind.HIDDEN_STATE:
            states = self.real(self.result.hidden_states[feature.layer])
        else:
            states = self.real(self.attention.input(feature.kind, feature.layer))
        return states.index_select(0, self.layout.first) if feature.per is Per.FIRST_TOKEN else states

    def real(self, states: Tensor) -> Tensor:
        """Returns the values of the real tokens, (tokens, width)."""
        return states[0] if self.packed else states.flatten(0, 1).index_select(0, self.layout.real)

    @property
    def logits(self) -> Tensor:
        if "logits" in self.result:
            return self.result.logits
        family, states = family_of(self.model.config), self.real(self.result.last_hidden_state)
        average = family.averages(self.model.config)
        pooled = self.layout.means(states) if average else states.index_select(0, self.layout.first)
        return family.apply_head(self.model, pooled[:, None])

    @property
    def masked_logits(self) -> Tensor:
        masked = self.layout.masked(self.batch)
        if "logits" in self.result:
            return self.real(self.result.logits).index_select(0, masked)
        # The head on masked tokens alone: on all of them, it would dominate a small student's cost.
        states = self.real(self.result.last_hidden_state).index_select(0, masked)
        return family_of(self.model.config).apply_head(self.model, states)


_known: dict[str, Way] = {}
_ways: WeakKeyDictionary[PreTrainedModel, Way] = WeakKeyDictionary()
_testing = Lock()


def _way(model: PreTrainedModel) -> Way:
    """Returns the fastest way that gives what transformers gives; tested on a tiny model, once for equal configs."""
    with _testing:  # students may run in threads
        if model not in _ways:
            kind, config = type(model), copy.deepcopy(model.config)
            family = family_of(config)
            tiny = family.tiny(config, Architecture(2, 2, 8, 8, family.architecture(config).hidden_act))
            key = f"{kind} {tiny.to_json_string(use_diff=False)}"
            if key not in _known:
                _known[key] = next(way for way in WAYS if way == WAYS[-1] or _agrees(kind, tiny, way))
            _ways[model] = _known[key]
        return _ways[model]


@torch.no_grad()
def _agrees(kind: type[PreTrainedModel], config: PreTrainedConfig, way: Way) -> bool:
    try:
        with torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False), torch.device("cpu"):
            torch.default_generator.manual_seed(0)  # the CPU's generator alone
            tiny, batch, features = _trial(kind, copy.deepcopy(config))
            one, other = (_run(tiny, batch, features, each) for each in (way, WAYS[-1]))
    except Exception:  # a family without support can raise anything
        return False
    return all(torch.allclose(one[feature], other[feature], rtol=1e-3, atol=1e-4) for feature in features)


def _trial(
    kind: type[PreTrainedModel], config: PreTrainedConfig
) -> tuple[PreTrainedModel, BatchEncoding, set[Feature]]:
    """Returns a tiny model of a class, a batch with all of its inputs, and the features to compare.

    The batch has rows that are longer than the windows of attention.
    """
    family, layers = family_of(config), range(1, config.num_hidden_layers + 1)
    tiny = kind(config).eval()
    for parameter in tiny.parameters():
        parameter.normal_()
    longest = max(4, *(3 + (family.window(config, layer) or 0) for layer in layers))
    mask = (torch.arange(longest) < torch.tensor([[2], [longest], [longest]])).long()
    tokens = torch.randint(config.vocab_size, mask.shape)
    tokens[tokens == config.pad_token_id] += 1
    batch = BatchEncoding({"input_ids": tokens, "attention_mask": mask})
    if "token_type_ids" in signature(tiny.forward).parameters:
        batch["token_type_ids"] = torch.randint(max(1, family.token_types(config)), mask.shape)
    features = {hidden_state(layer) for layer in range(3)}
    if family.gives_attention_inputs(config):
        features |= {Feature(kind, layer) for kind in ATTENTION_INPUTS for layer in layers}
    if is_masked_lm(tiny):
        batch["labels"] = torch.where(torch.arange(longest) == torch.tensor([[1], [0], [3]]), tokens, -100)
        features.add(MASKED_LOGITS)
    elif has_head(tiny):
        features.add(LOGITS)
    return tiny, batch, features
