"""The attention functions that transformers' models call here: on packed rows, and on padded ones to record inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from kdnas.models.families import family_of
from kdnas.models.features import ATTENTION_INPUTS, Feature, Kind

PACKED, RECORDED = "kdnas_packed", "kdnas_recorded"
"""The names of the two attention functions in transformers' configs."""
SHORT = 256
"""The longest rows for which plain matrix products train faster on a CPU than fused attention: 10 times in bf16."""


class Attention:
    """The attention of one forward pass, layer by layer, and the queries, keys and values that features ask for.

    Attributes:
        runs: of packed rows, (rows, length) of each run of adjacent rows of equal length.
        windows: the family's `window` of each layer.
    """

    def __init__(
        self, config: PreTrainedConfig, features: Collection[Feature], runs: Sequence[tuple[int, int]] = ()
    ) -> None:
        family, layers = family_of(config), range(1, config.num_hidden_layers + 1)
        self.runs, self.windows = runs, [family.window(config, layer) for layer in layers]
        self.wanted = {(feature.kind, feature.layer) for feature in features if feature.kind in ATTENTION_INPUTS}
        self._inputs: dict[tuple[Kind, int], Tensor] = {}
        self._layers = iter(layers)
        check_features(config, features)

    def next_layer(self, query: Tensor, key: Tensor, value: Tensor) -> int:
        """Takes the inputs of the next layer's attention, (rows, heads, tokens, head size), and returns the layer."""
        layer = next(self._layers)
        for kind, heads in zip(ATTENTION_INPUTS, (query, key, value), strict=True):
            if (kind, layer) in self.wanted:
                self.keep(layer, kind, heads.transpose(1, 2).flatten(2))
        return layer

    def keep(self, layer: int, kind: str, values: Tensor) -> None:
        """Keeps a layer's first queries, keys or values, (rows, tokens, heads * head size), if they are wanted."""
        if (Kind(kind), layer) in self.wanted:
            self._inputs.setdefault((Kind(kind), layer), values)

    def input(self, kind: Kind, layer: int) -> Tensor:
        """Returns a layer's queries, keys or values, heads side by side, (rows, tokens, heads * head size)."""
        return self._inputs[kind, layer]


def check_features(config: PreTrainedConfig, features: Collection[Feature]) -> None:
    """Refuses (by a ConfigError) queries, keys and values of a family that gives none."""
    if any(feature.kind in ATTENTION_INPUTS for feature in features):
        family_of(config).check_attention_inputs(config)


_current: ContextVar[Attention] = ContextVar("attention")
"""The attention of the current forward pass. Not an argument, which would recompile a compiled model for each value."""


@torch.compiler.disable
def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each of the packed rows: from (1, heads, tokens, width) to (1, tokens, heads, width).

    Several heads may share keys and values. Rows of equal length are adjacent in a batch, so there are few runs, and
    none needs a mask but that of a window.

    Raises:
        NotImplementedError: the layer's window is not what the family says.
    """
    current = _current.get()
    window = current.windows[current.next_layer(query, key, value) - 1]
    if (window is None) != (sliding_window is None):
        raise NotImplementedError(f"a window of {sliding_window}, where the family has {window}")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    key, value = (heads.repeat_interleave(query.shape[1] // heads.shape[1], dim=1) for heads in (key, value))
    plain = query.device.type == "cpu" and query.requires_grad
    sizes = [rows * length for rows, length in current.runs]
    split = (t[0].split(sizes, dim=1) for t in (query, key, value))
    parts = []
    for (rows, length), *run in zip(current.runs, *split, strict=True):
        q, k, v = (t.unflatten(1, (rows, length)).transpose(0, 1) for t in run)  # (rows, heads, length, width)
        near = None if window is None or length <= window + 1 else within_window(length, window, query.device)
        if plain and length <= SHORT:
            scores = (q * scale) @ k.transpose(-1, -2)
            scores = scores if near is None else scores.masked_fill(~near, -torch.inf)
            weights = functional.softmax(scores, dim=-1, dtype=torch.float32)
            attended = functional.dropout(weights, dropout).to(v.dtype) @ v
        else:
            attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=near, dropout_p=dropout, scale=scale)
        parts.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)[None], None


def within_window(length: int, window: int, device: torch.device) -> Tensor:
    """Returns which tokens of a row attend to which, (length, length): those at most `window` apart."""
    place = torch.arange(length, device=device)
    return (place[:, None] - place).abs() <= window


@torch.compiler.disable
def recorded_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **others: Any
) -> tuple[Tensor, None]:
    """Transformers' SDPA attention on padded rows; keeps its inputs."""
    _current.get().next_layer(query, key, value)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **others)


AttentionInterface.register(PACKED, packed_attention)
AttentionInterface.register(RECORDED, recorded_attention)
AttentionMaskInterface.register(RECORDED, sdpa_mask)


@contextmanager
def packed(config: PreTrainedConfig, attention: Attention) -> Iterator[None]:
    """Switches a model to packed attention within the block; afterwards its config can be exported and measured."""
    with _function(PACKED, config, attention):
        yield


@contextmanager
def recorded(model: PreTrainedModel, attention: Attention) -> Iterator[None]:
    """Makes a model on padded rows give `attention` its queries, keys and values within the block."""
    config, encoder = model.config, model.base_model
    family = family_of(config)
    if family.calls_attention(config):
        with _function(RECORDED, config, attention):
            yield
        return
    layers: Any = encoder.get_submodule(family.layers) if attention.wanted else ()
    handles = [
        handle
        for layer, module in enumerate(layers, start=1)
        for handle in family.watch(module, partial(attention.keep, layer))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _function(name: str, config: PreTrainedConfig, attention: Attention) -> Iterator[None]:
    usual, before = config._attn_implementation, _current.set(attention)
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = usual
        _current.reset(before)
