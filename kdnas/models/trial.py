"""Tests, on a tiny model, whether models of a family can be distilled, measured, exported and fine-tuned."""

from __future__ import annotations

import copy
from inspect import signature
from typing import Any

import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)

from kdnas.base.errors import ConfigError, reason
from kdnas.models.architecture import Architecture
from kdnas.models.families import (
    TINY,
    apart,
    architecture_of,
    by_config,
    count_flops,
    count_parameters,
    make,
    new_encoder,
    run,
    tiny,
)

LENGTH = 8
SPARE = 4_000_000
"""The most parameters of a tiny model. One with more has tables of other inputs, which no architecture shrinks."""
ARCHITECTURES = (TINY, Architecture(3, 3, 12, 40, "relu"))
"""Two architectures that differ in all five values, so that both a teacher's and a student's are tested."""


def refusal(config: PreTrainedConfig) -> str | None:
    """Returns why students of a config's family cannot be made; None where they can."""
    for name, known in (("encoder", MODEL_MAPPING), ("classifier", MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING)):
        if type(config) not in known:
            return f"transformers has no {name} of it"
    if config.is_encoder_decoder:
        return "it has a decoder"
    kind: Any = MODEL_MAPPING[type(config)]
    if "input_ids" not in signature(kind.forward).parameters:
        return "it does not read text"
    try:
        return next(filter(None, (_fault(tiny(config, architecture)) for architecture in ARCHITECTURES)), None)
    except Exception as error:  # an unsuitable family can raise anything
        return reason(error)


def check_architecture(config: PreTrainedConfig) -> None:
    """Refuses a student's config whose five values cannot be combined in its family.

    Raises:
        ConfigError: the model cannot be built or run.
    """
    layer = copy.deepcopy(config)
    layer.num_hidden_layers = 1
    try:
        count_flops(layer, 1, LENGTH)
    except Exception as error:  # any, as above
        raise ConfigError(
            f"architecture={architecture_of(config)}: not of a {config.model_type} model ({reason(error)})"
        ) from error


@by_config
@apart
def _fault(config: PreTrainedConfig) -> str | None:
    """Runs a tiny model through every step of a student's life; returns what is wrong with it, if anything."""
    if count_parameters(config) > SPARE:
        return "it has tables of other inputs than text, as large for every student"
    try:
        count_flops(config, 1, LENGTH)
    except Exception:
        return "the cost of a pass cannot be counted"
    encoder = new_encoder(config)
    states = run(encoder, LENGTH).hidden_states
    if [state.shape[-1] for state in states] != [config.hidden_size] * (config.num_hidden_layers + 1):
        return "its hidden states are not one a layer, of the hidden size"
    states[-1].square().mean().backward()
    if not all(parameter.grad.isfinite().all() for parameter in encoder.parameters() if parameter.grad is not None):
        return "its gradients are not finite"
    if not _reads_both_ways(config):
        return "tokens do not attend to later ones; must be an encoder"
    if run(make(AutoModelForSequenceClassification, config), LENGTH).logits.shape != (2, 2):
        return "its classifier does not give a logit a class"
    return None


@torch.no_grad()
def _reads_both_ways(config: PreTrainedConfig) -> bool:
    """Returns whether the first token's state depends on the last token."""
    encoder = new_encoder(config).eval()
    tokens = torch.arange(LENGTH) + 8  # no special ones
    other = torch.cat([tokens[:-1], tokens[-1:] + 1])
    given = encoder(input_ids=torch.stack([tokens, other]), attention_mask=torch.ones(2, LENGTH, dtype=torch.long))
    first, second = given.last_hidden_state[:, 0]
    return not torch.equal(first, second)
