"""Tests, on a tiny model, whether models of a config's family can be distilled, measured, exported and fine-tuned."""

import copy
import math
from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, TypeVar

import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from kdnas.base.errors import ConfigError, reason
from kdnas.models.architecture import Architecture
from kdnas.models.building import make, new_encoder
from kdnas.models.counting import count_flops, count_parameters
from kdnas.models.families import architecture_of, family_of

T = TypeVar("T")
LENGTH = 8
"""The tokens of a tiny model's input, which are as many as its table has positions."""
SPARE = 4_000_000
"""The most parameters of a tiny model. One with more has tables of other inputs, which no architecture shrinks."""
TINY = Architecture(2, 2, 16, 24, "gelu")
_faults: dict[str, str | None] = {}
ARCHITECTURES = (TINY, Architecture(3, 3, 12, 40, "relu"))
"""Two architectures that differ in all five values, so that both a teacher's and a student's are tested."""


def check_architecture(config: PreTrainedConfig) -> None:
    """Refuses (by a ConfigError) a student's config whose five values cannot be combined in its family."""
    layer = copy.deepcopy(config)
    layer.num_hidden_layers = 1
    try:
        count_flops(layer, 1, LENGTH)
    except Exception as error:  # an unsuitable model can raise anything
        raise ConfigError(
            f"architecture={architecture_of(config)}: not of a {config.model_type} model ({reason(error)})"
        ) from error


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
        tiny = (family_of(config).tiny(config, architecture) for architecture in ARCHITECTURES)
        return next(filter(None, map(_fault, tiny)), None)
    except Exception as error:  # any, as above
        return reason(error)


def apart(function: Callable[..., T]) -> Callable[..., T]:
    """Decorates a function to run on the CPU in fp32, with gradients; its generator is seeded with 0, then restored."""

    @wraps(function)
    def alone(*arguments: Any) -> T:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.autocast("cpu", enabled=False):
            torch.default_generator.manual_seed(0)  # the CPU's generator alone
            with torch.enable_grad():
                return function(*arguments)

    return alone


def _fault(config: PreTrainedConfig) -> str | None:
    key = f"{type(config)} {config.to_json_string(use_diff=False)}"
    if key not in _faults:
        _faults[key] = _find_fault(config)
    return _faults[key]


@apart
def _find_fault(config: PreTrainedConfig) -> str | None:
    """Runs a tiny model through every step of a student's life; returns what is wrong with it, if anything."""
    if count_parameters(config) > SPARE:
        return "it has tables of other inputs than text, as large for every student"
    try:
        count_flops(config, 1, LENGTH)
    except Exception:
        return "the cost of a pass cannot be counted"
    encoder = new_encoder(config)
    states = _run(encoder).hidden_states
    if [state.shape[-1] for state in states] != [config.hidden_size] * (config.num_hidden_layers + 1):
        return "its hidden states are not one a layer, of the hidden size"
    states[-1].square().mean().backward()
    if not all(parameter.grad.isfinite().all() for parameter in encoder.parameters() if parameter.grad is not None):
        return "its gradients are not finite"
    if not _reads_both_ways(config):
        return "tokens do not attend to later ones; must be an encoder"
    still = copy.deepcopy(config)
    still.update(dict.fromkeys(family_of(config).dropouts(config), 0.0))
    classifier = make(AutoModelForSequenceClassification, still)
    logits = _run(classifier.eval()).logits
    if logits.shape != (2, 2):
        return "its classifier does not give a logit a class"
    if not torch.equal(logits, _run(classifier.train()).logits):
        return "its dropout probabilities are not called as a BERT's are"
    return _misdescribed(config, encoder)


@torch.no_grad()
def _reads_both_ways(config: PreTrainedConfig) -> bool:
    encoder = new_encoder(config).eval()
    tokens = torch.arange(LENGTH) + 8  # no special ones
    other = torch.cat([tokens[:-1], tokens[-1:] + 1])
    output = encoder(input_ids=torch.stack([tokens, other]), attention_mask=torch.ones(2, LENGTH, dtype=torch.long))
    first, second = output.last_hidden_state[:, 0]
    return not torch.equal(first, second)


@torch.no_grad()
def _misdescribed(config: PreTrainedConfig, encoder: PreTrainedModel) -> str | None:
    family = family_of(config)
    try:
        family.blocks(encoder)
    except AttributeError:
        return "its layers and embeddings are not where a BERT's are"
    if getattr(config, "max_position_embeddings", None) is not None:
        small = copy.deepcopy(config)
        unlimited = family.positions(config) == math.inf
        small.max_position_embeddings = 1 if unlimited else family.first_position(config) + LENGTH
        try:
            _run(new_encoder(small).eval())
        except (IndexError, RuntimeError):
            return "it does not take as many positions as a BERT"
    return None


def _run(model: PreTrainedModel) -> Any:
    """Runs a model on two rows of arbitrary tokens, (2, LENGTH); the second row ends with padding."""
    padding = model.config.pad_token_id
    word = next(token for token in range(4) if token != padding)
    tokens = torch.full((2, LENGTH), word)
    mask = torch.ones_like(tokens)
    mask[1, -2:] = 0
    tokens[mask == 0] = word if padding is None else padding
    return model(input_ids=tokens, attention_mask=mask, output_hidden_states=True)
