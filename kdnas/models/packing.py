"""Packed batches: models run on the concatenated real tokens of a batch, without padding, if their family can."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import groupby
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AttentionInterface,
    BatchEncoding,
    PreTrainedConfig,
    PreTrainedModel,
)

from kdnas.models.families import first_position

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
PACKED = "kdnas_packed"
"""The name of the attention of packed rows in transformers' configs."""
SHORT = 256
"""The longest rows for which plain matrix products train faster on a CPU than fused attention: 10 times in bf16."""


@dataclass(frozen=True)
class Layout:
    """The positions of a batch's tokens, padded and packed.

    Attributes:
        runs: (rows, length) of each run of adjacent rows of equal length, on the host.
        real: the indices of the packed tokens in the flattened padded batch, (tokens,).
        first: the indices of the rows' first tokens among the packed ones, (rows,).
        positions: the positions of the packed tokens in their rows, (tokens,).
    """

    runs: Sequence[tuple[int, int]]
    real: Tensor
    first: Tensor
    positions: Tensor

    @classmethod
    def of(cls, batch: BatchEncoding) -> Layout:
        """Computes the layout of a batch, and stores it there for the teacher and every student.

        A batch that has its `lengths` as a list saves a device synchronization.
        """
        if "layout" not in batch:
            mask = batch["attention_mask"]
            lengths = batch["lengths"] if "lengths" in batch else mask.sum(1).tolist()
            runs = [(len(list(run)), length) for length, run in groupby(lengths)]
            tokens, width = sum(lengths), mask.shape[1]
            counts = mask.sum(1)  # on the device, without a synchronization
            first = counts.cumsum(0) - counts
            row = torch.repeat_interleave(counts, output_size=tokens)
            positions = torch.arange(tokens, device=mask.device) - first[row]
            # Tokenizers may pad on the left.
            begin = mask.argmax(1)
            batch["layout"] = cls(runs, row * width + begin[row] + positions, first, positions)
        return batch["layout"]


@dataclass(frozen=True)
class Outputs:
    """The outputs of a model, teacher or student, for a batch.

    Attributes:
        states: the hidden states of the real tokens, by layer (1 is the first above the embeddings), (tokens, width).
        logits: the logits of a classifier, (rows, classes), or of a language model, (masked tokens, vocabulary).
        first: the hidden states of the rows' first tokens, by layer, (rows, width), where only these are cached.
    """

    states: Mapping[int, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None
    first: Mapping[int, Tensor] = field(default_factory=dict)


def outputs(
    model: PreTrainedModel,
    batch: BatchEncoding,
    layers: Collection[int] = (),
    compiled: Callable[..., Any] | None = None,
) -> Outputs:
    """Runs a model on a batch.

    Args:
        model: an encoder, a sequence classifier or a masked language model.
        layers: the layers whose hidden states are wanted.
        compiled: the model's encoder, compiled with dynamic shapes.
    """
    return _run(model, batch, layers, _packs(model), compiled)


def masked_tokens(model: PreTrainedModel, batch: BatchEncoding) -> Tensor | None:
    """Returns the mask of the tokens that a masked language model predicts, (rows, length); None for other models."""
    predicts = type(model) is MODEL_FOR_MASKED_LM_MAPPING.get(type(model.config), None)
    return batch["labels"] != -100 if predicts and "labels" in batch else None


def _run(
    model: PreTrainedModel,
    batch: BatchEncoding,
    layers: Collection[int],
    pack: bool,
    compiled: Callable[..., Any] | None = None,
) -> Outputs:
    layout, masked = Layout.of(batch), masked_tokens(model, batch)
    headless = model.base_model is model
    encoder = model.base_model if compiled is None else compiled
    if pack:
        inputs = {name: batch[name].flatten()[layout.real][None] for name in MODEL_INPUTS if name in batch}
        inputs["position_ids"] = (layout.positions + first_position(model))[None]
        del inputs["attention_mask"]
        with _packed(model.config, layout.runs):
            given = encoder(**inputs, output_hidden_states=bool(layers))
    else:
        inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
        whole = headless or masked is not None
        given = (encoder if whole else model)(**inputs, output_hidden_states=bool(layers))
    places = None if pack else layout.real
    states = {layer: _real(given.hidden_states[layer], places) for layer in sorted(layers)}
    if headless:
        return Outputs(states)
    if masked is not None:  # the head on masked tokens alone: on all, it would dominate a small student's cost
        wanted = masked.flatten()[layout.real].nonzero().squeeze(1)
        return Outputs(states, _head(model, _real(given.last_hidden_state, places).index_select(0, wanted)))
    if pack:
        return Outputs(states, _head(model, given.last_hidden_state[0].index_select(0, layout.first)[:, None]))
    return Outputs(states, given.logits)


def _real(states: Tensor, places: Tensor | None) -> Tensor:
    """Returns the hidden states of the real tokens, (tokens, width)."""
    return states[0] if places is None else states.flatten(0, 1).index_select(0, places)


def _head(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Applies a model's pooler and head to encoder states, (tokens, width) or (rows, 1, width)."""
    pooler = getattr(model.base_model, "pooler", None)
    if pooler is not None:
        states = pooler(states)
    for name, part in model.named_children():
        if name != model.base_model_prefix:
            states = part(states)
    return states


# -- attention


_runs: ContextVar[Sequence[tuple[int, int]]] = ContextVar("runs")
"""The runs of the current batch. Not an argument, which would recompile a compiled model for each value."""


@torch.compiler.disable
def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each of the packed rows: from (1, heads, tokens, width) to (1, tokens, heads, width).

    Rows of equal length are adjacent in a batch, so there are few runs, and none needs a mask.
    """
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    runs = _runs.get()
    plain = query.device.type == "cpu" and query.requires_grad
    sizes = [rows * length for rows, length in runs]
    parts = []
    for (rows, length), *run in zip(runs, *(t[0].split(sizes, dim=1) for t in (query, key, value)), strict=True):
        q, k, v = (t.unflatten(1, (rows, length)).transpose(0, 1) for t in run)  # (rows, heads, length, width)
        if plain and length <= SHORT:
            weights = functional.softmax((q * scale) @ k.transpose(-1, -2), dim=-1, dtype=torch.float32)
            given = functional.dropout(weights, dropout).to(v.dtype) @ v
        else:
            given = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale)
        parts.append(given.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)[None], None


AttentionInterface.register(PACKED, packed_attention)


@contextmanager
def _packed(config: PreTrainedConfig, runs: Sequence[tuple[int, int]]) -> Iterator[None]:
    """Switches a model to packed attention within the block; afterwards its config can be exported and measured."""
    usual, before = config._attn_implementation, _runs.set(runs)
    config._attn_implementation = PACKED
    try:
        yield
    finally:
        config._attn_implementation = usual
        _runs.reset(before)


# -- which models support packed rows


_known: dict[type[PreTrainedModel], bool] = {}
_asking = Lock()


def _packs(model: PreTrainedModel) -> bool:
    """Returns whether packed and padded rows give equal outputs, tested once for each class on a tiny model."""
    kind = type(model)
    with _asking:  # students may run in threads
        if kind not in _known:
            try:
                _known[kind] = _agrees(kind, copy.deepcopy(model.config))
            except Exception:  # a family without support can raise anything
                _known[kind] = False
        return _known[kind]


@torch.no_grad()
def _agrees(kind: type[PreTrainedModel], config: PreTrainedConfig) -> bool:
    config.update({"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 8})
    with torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False), torch.device("cpu"):
        torch.default_generator.manual_seed(0)  # the CPU's generator alone
        tiny = kind(config).eval()
        for parameter in tiny.parameters():
            parameter.normal_()
        mask = (torch.arange(4) < torch.tensor([[2], [4], [4]])).long()
        tokens = torch.randint(config.vocab_size, mask.shape)
        tokens[tokens == config.pad_token_id] += 1
        batch = BatchEncoding({"input_ids": tokens, "attention_mask": mask})
        packed, padded = (_all(_run(tiny, batch, {1, 2}, pack)) for pack in (True, False))
    return all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(packed, padded, strict=True))


def _all(said: Outputs) -> list[Tensor]:
    return [*said.states.values(), *([] if said.logits is None else [said.logits])]
