"""Checks that a model takes everything that its tokenizer gives."""

import copy

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchEncoding, PreTrainedConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

from kdnas.base.errors import ConfigError, reason, require
from kdnas.models.building import new_encoder
from kdnas.models.families import family_of
from kdnas.models.packing import MODEL_INPUTS
from kdnas.models.trial import TINY, apart

TEXT = "The cat's seven lives, 12.5 \u00e9t\u00e9 \u732b \U0001f408!"
"""A text with words and symbols that a vocabulary may lack."""


def check_fit(
    config: PreTrainedConfig,
    tokenizer: Tokenizer,
    source: str,
    texts_per_row: int,
    max_length: int,
    whose: str = "teacher",
) -> None:
    """Refuses a tokenizer and a model (of the setting `source`) that do not fit, or rows too long for them."""
    longest = min(family_of(config).positions(config), tokenizer.model_max_length)
    require(max_length <= longest, "data.max_length", max_length, f"at most the {whose}'s {longest}")
    _check_ids(config, tokenizer, source)
    try:
        batch = _batch(tokenizer, texts_per_row, max_length)
    except Exception as error:  # a broken tokenizer can raise anything
        raise ConfigError(
            f"{source}: its tokenizer cannot tokenize a text of any characters ({reason(error)})"
        ) from error
    _check_beginning(batch, source)
    _check_types(config, batch, source)
    _check_run(config, tokenizer, batch, source)


def _check_ids(config: PreTrainedConfig, tokenizer: Tokenizer, source: str) -> None:
    token, largest = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    if largest >= config.vocab_size:
        raise ConfigError(
            f"{source}: its tokenizer gives ids up to {largest} ({token!a}), its model has "
            f"vocab_size={config.vocab_size}; must be at least {largest + 1}, as resize_token_embeddings makes it"
        )
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"{source}: its tokenizer has no padding token; must have one (pad_token)")


def _batch(tokenizer: Tokenizer, texts_per_row: int, max_length: int) -> BatchEncoding:
    """Tokenizes a short, an empty and a truncated row as the data module does."""
    texts = [TEXT, "", " ".join([TEXT] * max_length)]
    own = copy.deepcopy(tokenizer)  # which keeps the truncation, and would be exported with it
    encoded = own(*[texts] * texts_per_row, truncation=True, max_length=max_length)
    if too_long := [len(row) for row in encoded["input_ids"] if len(row) > max_length]:
        raise ValueError(f"it gives {too_long[0]} tokens where {max_length} are the most")
    return encoded


def _check_beginning(batch: BatchEncoding, source: str) -> None:
    """Refuses rows that begin with a word: an empty text would have no token, and classifiers read the first token."""
    if len({row[0] if row else None for row in batch["input_ids"]}) > 1 or not batch["input_ids"][1]:
        raise ConfigError(
            f"{source}: its tokenizer begins a row with its first word; must begin it with a special token, as [CLS] "
            "(a post-processor adds it)"
        )


def _check_types(config: PreTrainedConfig, batch: BatchEncoding, source: str) -> None:
    largest = max((max(row) for row in batch.get("token_type_ids", [])), default=0)
    types = family_of(config).token_types(config)
    if types and largest >= types:
        raise ConfigError(
            f"{source}: its tokenizer gives a pair's second text token_type_ids of {largest}, its model has "
            f"type_vocab_size={types}; must be at least {largest + 1}, or data.columns one column"
        )


@apart
@torch.no_grad()
def _check_run(config: PreTrainedConfig, tokenizer: Tokenizer, batch: BatchEncoding, source: str) -> None:
    """Runs a tiny model of the same family, vocabulary and positions on a batch, and refuses what it does not take."""
    family, padding = family_of(config), tokenizer.pad_token_id
    if family.first_position(config) and padding != config.pad_token_id:
        raise ConfigError(
            f"{source}: its tokenizer pads with {padding}, and its model counts positions from "
            f"pad_token_id={config.pad_token_id}; must be the same"
        )
    empty, mask = {"input_ids": padding}, [[1] * len(row) for row in batch["input_ids"]]
    inputs = {
        name: pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=empty.get(name, 0))
        for name, rows in (batch | {"attention_mask": mask}).items()
        if name in MODEL_INPUTS
    }
    tiny = new_encoder(family.resize(config, TINY)).eval()
    try:
        states = tiny(**inputs).last_hidden_state
    except Exception as error:  # a model given unsuitable inputs can raise anything
        raise ConfigError(f"{source}: its model does not take what its tokenizer gives ({reason(error)})") from error
    if not states.isfinite().all():
        raise ConfigError(f"{source}: its model gives NaN for what its tokenizer gives")
