"""What the students learn from: the teacher's outputs, behind one interface."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedModel

HiddenStates = dict[int, Tensor]
"""Layer (1 is the first above the embeddings) to the states of a batch's real tokens, (tokens, width)."""

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class TeacherOutputs(Protocol):
    """Gives a batch's teacher states; nothing above it knows whether they are computed or kept."""

    def to(self, device: torch.device) -> TeacherOutputs: ...

    def __call__(self, batch: BatchEncoding, layers: Collection[int]) -> HiddenStates: ...


def hidden_states(model: PreTrainedModel, batch: BatchEncoding, layers: Collection[int]) -> HiddenStates:
    """The states of the real tokens at some of a model's layers: padding is dropped, so it can change nothing."""
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    states = model(**inputs, output_hidden_states=True).hidden_states
    real = batch["attention_mask"].flatten().nonzero().squeeze(1)
    return {layer: states[layer].flatten(0, 1).index_select(0, real) for layer in sorted(layers)}


class OnlineTeacher:
    """Runs the teacher on every batch. A plain object, not a module: it is never saved with the students."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval().requires_grad_(False)

    def to(self, device: torch.device) -> OnlineTeacher:
        self.model.to(device)
        return self

    @torch.no_grad()
    def __call__(self, batch: BatchEncoding, layers: Collection[int]) -> HiddenStates:
        return hidden_states(self.model, batch, layers)
