"""Whether models of a family can be distilled, measured, exported and fine-tuned: tried on a tiny one."""

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

from kdnas.architecture import Architecture
from kdnas.errors import ConfigError, reason
from kdnas.families import (
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
"""Parameters of a tiny model, beyond which most are in tables of further inputs, whose size no architecture changes."""
ARCHITECTURES = (TINY, Architecture(3, 3, 12, 40, "relu"))
"""Two that differ in all five values, so that nothing of a student can depend on its teacher's."""


def refusal(config: PreTrainedConfig) -> str | None:
    """Says why students of a config's family cannot be made; None where they can."""
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
    except Exception as error:  # a family that does not go with one of the steps can raise anything
        return reason(error)


def check_architecture(config: PreTrainedConfig) -> None:
    """Refuses a student's config whose five values do not go together in its family.

    Raises:
        ConfigError: they do not.
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
    """Takes a tiny model through all that is done with a student; says what is wrong with it."""
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
        return "a token knows nothing of later ones; must be an encoder"
    if run(make(AutoModelForSequenceClassification, config), LENGTH).logits.shape != (2, 2):
        return "its classifier does not give a logit a class"
    return None


@torch.no_grad()
def _reads_both_ways(config: PreTrainedConfig) -> bool:
    """Whether a row's first state depends on its last token."""
    encoder = new_encoder(config).eval()
    tokens = torch.arange(LENGTH) + 8  # no special ones
    other = torch.cat([tokens[:-1], tokens[-1:] + 1])
    given = encoder(input_ids=torch.stack([tokens, other]), attention_mask=torch.ones(2, LENGTH, dtype=torch.long))
    first, second = given.last_hidden_state[:, 0]
    return not torch.equal(first, second)
