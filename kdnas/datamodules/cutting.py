"""Long texts: cut before they are tokenized, which takes 200 bytes and more a character."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase as Tokenizer

FEW, MOST = 16, 1_000_000
"""Characters of a text that are looked at: for each token of a row at first, and in all at last."""


def shortened(text: str, tokenizer: Tokenizer, tokens: int) -> str:
    """Cuts a text, between words, to a part that has more than so many tokens; a shorter text stays whole.

    What is left out has no part in a row of so many tokens, except behind a million characters of next to nothing.
    (Of a pair of such texts, a row's odd token may go to the other one.)
    """
    size = FEW * tokens
    while size < min(len(text), MOST):
        part = _end(text, size) if tokenizer.truncation_side == "left" else _beginning(text, size)
        if len(tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]) > tokens:
            return part
        size *= 4
    return text[-MOST:] if tokenizer.truncation_side == "left" else text[:MOST]


def _beginning(text: str, size: int) -> str:
    """The whole words among the first characters, or these if they are of one."""
    return "".join(text[:size].rsplit(maxsplit=1)[:1])


def _end(text: str, size: int) -> str:
    return "".join(text[-size:].split(maxsplit=1)[-1:])
