"""What the students learn from: the teacher's outputs, behind one interface."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedModel

HiddenStates = dict[int, Tensor]
"""Layer (1 is the first above the embeddings) to the states of a batch's real tokens, (tokens, width)."""

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class Outputs:
    """What a model, teacher or student, says of a batch.

    Attributes:
        states: of the real tokens, at the layers that were asked for.
        logits: of a model with a head: (rows, classes), or of a language model (masked tokens, vocabulary).
    """

    states: HiddenStates
    logits: Tensor | None = None


class TeacherOutputs(Protocol):
    """Gives the teacher's outputs for a batch; nothing above it knows whether they are computed or kept."""

    def to(self, device: torch.device) -> TeacherOutputs: ...

    def __call__(self, batch: BatchEncoding, layers: Collection[int]) -> Outputs: ...


def outputs(model: PreTrainedModel, batch: BatchEncoding, layers: Collection[int]) -> Outputs:
    """A model's outputs; padding is dropped from the states, so it can change nothing."""
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    masked = masked_tokens(batch) if model.base_model is not model else None
    given = (model if masked is None else model.base_model)(**inputs, output_hidden_states=True)
    real = batch["attention_mask"].flatten().nonzero().squeeze(1)
    states = {layer: given.hidden_states[layer].flatten(0, 1).index_select(0, real) for layer in sorted(layers)}
    if masked is None:
        return Outputs(states, given.get("logits"))
    # The head on masked tokens alone: of all tokens, it would be most of a small student's work.
    guesses = given.last_hidden_state[masked]
    for name, head in model.named_children():
        if name != model.base_model_prefix:
            guesses = head(guesses)
    return Outputs(states, guesses)


def masked_tokens(batch: BatchEncoding) -> Tensor | None:
    """Which tokens of masked text are to be guessed, (rows, length); None of other text."""
    labels = batch.get("labels")
    return labels != -100 if labels is not None and labels.dim() == 2 else None


class OnlineTeacher:
    """Runs the teacher on every batch. A plain object, not a module: it is never saved with the students."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval().requires_grad_(False)

    def to(self, device: torch.device) -> OnlineTeacher:
        self.model.to(device)
        return self

    @torch.no_grad()
    def __call__(self, batch: BatchEncoding, layers: Collection[int]) -> Outputs:
        return outputs(self.model, batch, layers)


class NoTeacher:
    """Of objectives that need none."""

    def to(self, device: torch.device) -> NoTeacher:
        return self

    def __call__(self, batch: BatchEncoding, layers: Collection[int] = ()) -> Outputs:
        return Outputs({})
