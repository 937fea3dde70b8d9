"""An encoder's layers by the roles of their modules, and what the modules take on a sample of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BatchEncoding, PreTrainedModel

from kdnas.models.families import family_of
from kdnas.models.packing import MODEL_INPUTS


@dataclass(frozen=True)
class Layer:
    """A layer of an encoder in which each half adds to its input and is then normalised, as in BERT.

    Attributes:
        whole: the layer itself.
        query, key, value: from hidden states to what the attention takes, all heads side by side.
        attention_output, attention_norm: the attention's output matrix, and the norm of its sum with the layer's input.
        intermediate, output, output_norm: the same of the feed-forward network, whose activation is between the two.
    """

    whole: nn.Module
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_output: nn.Linear
    attention_norm: nn.LayerNorm
    intermediate: nn.Linear
    output: nn.Linear
    output_norm: nn.LayerNorm


def layers_of(encoder: PreTrainedModel) -> list[Layer]:
    """Returns an encoder's layers, the first one first.

    Raises:
        AttributeError: the family's layers are of another kind, or have other names.
    """
    family, found = family_of(encoder.config), []
    layers: Any = encoder.get_submodule(family.layers)
    paths = {**family.projections, **family.roles} if family.roles else {}
    for layer in layers:
        parts: dict[str, Any] = {role: layer.get_submodule(path) for role, path in paths.items()}
        if not parts or not all(isinstance(part, nn.Linear | nn.LayerNorm) for part in parts.values()):
            raise AttributeError(f"the layers of a {encoder.config.model_type} model are not as BERT's")
        found.append(Layer(layer, **parts))
    return found


class Sample:
    """Batches of text, as a model takes them, and their real tokens."""

    def __init__(self, batches: Sequence[BatchEncoding]) -> None:
        self.batches = [{name: batch[name] for name in MODEL_INPUTS if name in batch} for batch in batches]
        self.masks = [batch["attention_mask"].bool() for batch in batches]

    def real(self, values: Sequence[Tensor]) -> Tensor:
        """Returns the real tokens of values for each batch, (rows, length, width) each, as (tokens, width)."""
        return torch.cat([each[mask] for each, mask in zip(values, self.masks, strict=True)])

    @property
    def tokens(self) -> int:
        return sum(int(mask.sum()) for mask in self.masks)

    def inputs(
        self,
        encoder: PreTrainedModel,
        modules: Sequence[nn.Module],
        reduced: Mapping[nn.Linear, Callable[[Tensor], None]] = MappingProxyType({}),
    ) -> dict[nn.Module, Tensor]:
        """Runs an encoder and returns the first input of each of the modules, (tokens, width).

        The inputs of the modules in `reduced` go to a function each, batch by batch, and are not kept.
        """
        parts: dict[nn.Module, list[Tensor]] = {module: [] for module in modules}
        takers = [*((module, part.append) for module, part in parts.items()), *reduced.items()]
        for batch, mask in zip(self.batches, self.masks, strict=True):
            hooks = [module.register_forward_pre_hook(_giving(take, mask)) for module, take in takers]
            encoder(**batch)
            for hook in hooks:
                hook.remove()
        return {module: torch.cat(parts.pop(module)) for module in modules}  # frees the batches one by one


def _giving(take: Callable[[Tensor], None], mask: Tensor) -> Callable[[nn.Module, Any], None]:
    """Returns a hook that gives the real tokens of a module's first input to a function."""
    return lambda _, arguments: take(arguments[0][mask])


class Steps:
    """Runs an encoder on a sample layer by layer, while its layers are fitted.

    Attributes:
        states: the states that go into the next layer, for each batch, (rows, length, width).
    """

    def __init__(self, encoder: PreTrainedModel, sample: Sample, layers: Sequence[Layer]) -> None:
        self.sample, first = sample, layers[0].whole
        with _recorded([first]) as calls:
            for batch in sample.batches:
                encoder(**batch)
        # All layers take the same masks and biases beside the states.
        self.further = [(arguments[1:], named) for arguments, named in calls[first]]
        self.states: list[Tensor] = [arguments[0] for arguments, _ in calls[first]]

    @property
    def tokens(self) -> Tensor:
        """The states of the real tokens, (tokens, width)."""
        return self.sample.real(self.states)

    def into(self, module: nn.Module, layer: Layer) -> Tensor:
        """Returns what a module of the next layer takes, (tokens, width); the layer is run only as far as that."""
        taken: list[Tensor] = []

        def take(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            taken.append(arguments[0])
            raise _TakenError

        hook = module.register_forward_pre_hook(take)
        for states, (more, named) in zip(self.states, self.further, strict=True):
            with suppress(_TakenError):
                layer.whole(states, *more, **named)
        hook.remove()
        return self.sample.real(taken)

    def advance(self, layer: Layer) -> None:
        given = zip(self.states, self.further, strict=True)
        found = [layer.whole(states, *more, **named) for states, (more, named) in given]
        self.states = [each[0] if isinstance(each, tuple) else each for each in found]


class _TakenError(Exception):
    """Ends a layer's forward pass."""


@contextmanager
def _recorded(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, list[tuple[Any, Any]]]]:
    """Records the arguments, by place and by name, of every call of the modules within the block."""
    calls: dict[nn.Module, list[tuple[Any, Any]]] = {module: [] for module in modules}

    def record(module: nn.Module, arguments: Any, named: Any) -> None:
        calls[module].append((arguments, named))

    hooks = [module.register_forward_pre_hook(record, with_kwargs=True) for module in modules]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
