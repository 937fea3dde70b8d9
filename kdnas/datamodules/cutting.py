"""Shortens long texts before they are tokenized: tokenizing takes 200 bytes and more of memory a character."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase as Tokenizer

FEW, MOST = 16, 1_000_000
"""Characters of a text that are tokenized: for each token of a row in the first attempt, and the most in all."""


def shortened(text: str, tokenizer: Tokenizer, tokens: int) -> str:
    """Cuts a text, between words, to a part that still has more than `tokens` tokens; a shorter text stays whole.

    A row of `tokens` tokens is the same as that of the whole text, except where a million characters give fewer
    tokens. (In a pair of long texts, the truncation may give the odd token to the other text.)
    """
    size = FEW * tokens
    while size < min(len(text), MOST):
        part = _end(text, size) if tokenizer.truncation_side == "left" else _beginning(text, size)
        if len(tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]) > tokens:
            return part
        size *= 4
    return text[-MOST:] if tokenizer.truncation_side == "left" else text[:MOST]


def _beginning(text: str, size: int) -> str:
    """Returns the whole words among the first `size` characters, or all of these if they are within one word."""
    return "".join(text[:size].rsplit(maxsplit=1)[:1])


def _end(text: str, size: int) -> str:
    return "".join(text[-size:].split(maxsplit=1)[-1:])
