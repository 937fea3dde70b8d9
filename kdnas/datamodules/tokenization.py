"""Tokenizes the rows of a dataset, once: `datasets` caches them by the fingerprint of all that decides the result."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import BatchEncoding
from transformers import PreTrainedTokenizerBase as Tokenizer

from kdnas.base.screen import activity
from kdnas.datamodules.masking import Masking

TRUNCATED = "truncated"
"""The column that says whether a row was truncated."""
FEW, MOST = 16, 1_000_000
"""Characters of a text that are tokenized: for each token of a row in the first attempt, and the most in all."""


class RowTokenizer:
    """Tokenizes rows of one text column, or of two as a pair, to at most `max_length` tokens."""

    def __init__(self, tokenizer: Tokenizer, max_length: int, masking: Masking | None) -> None:
        self.tokenizer, self.max_length, self.masking = tokenizer, max_length, masking

    def __call__(self, dataset: Dataset, columns: Sequence[str], label: str | None = None) -> Dataset:
        """Returns the tokenized rows, with the column `label` as `labels` and whether each row was truncated."""

        def tokenize(rows: dict[str, list[Any]]) -> BatchEncoding:
            texts = [list(rows[column]) for column in columns]
            short = [[shortened(text, self.tokenizer, self.max_length) for text in column] for column in texts]
            encoded = self.tokenizer(*short, truncation=True, max_length=self.max_length)
            encoded[TRUNCATED] = self._truncated(encoded, texts, short)
            if self.masking is not None:
                self.masking.annotate(encoded)
            if label:
                encoded["labels"] = list(rows[label])
            work.advance(len(texts[0]))
            return encoded

        with activity("tokenizing", total=len(dataset)) as work:
            return dataset.map(
                tokenize,
                batched=True,
                remove_columns=dataset.column_names,
                new_fingerprint=self._fingerprint(dataset, columns, label),
            )

    def _truncated(self, encoded: BatchEncoding, texts: list[list[str]], short: list[list[str]]) -> list[bool]:
        if encoded.encodings is None:  # a slow tokenizer's
            whole = self.tokenizer(*short, verbose=False)["input_ids"]
            over = [len(row) > self.max_length for row in whole]
        else:
            over = [bool(row.overflowing) for row in encoded.encodings]
        shorter = [one != other for one, other in zip(zip(*texts, strict=True), zip(*short, strict=True), strict=True)]
        return [a or b for a, b in zip(over, shorter, strict=True)]

    def _fingerprint(self, dataset: Dataset, columns: Sequence[str], label: str | None) -> str:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        rules = json.loads(backend.to_str()) if backend is not None else {"vocabulary": self.tokenizer.get_vocab()}
        rules |= {"truncation": None, "padding": None}  # set by the last call
        settings = [self.tokenizer.truncation_side, list(self.tokenizer.model_input_names), self.max_length]
        deciding = [
            dataset._fingerprint,
            type(self.tokenizer).__name__,
            rules,
            settings,
            list(columns),
            label,
            TRUNCATED,
        ]
        # The rules of a slow tokenizer are in its arguments.
        more = f"{self.masking} {'' if backend is not None else self.tokenizer.init_kwargs}"
        return hashlib.sha256(f"{json.dumps(deciding, sort_keys=True)} {more}".encode()).hexdigest()[:16]


def shortened(text: str, tokenizer: Tokenizer, tokens: int) -> str:
    """Returns the beginning of a text (the end, if the tokenizer truncates on the left), cut between words.

    It has more than `tokens` tokens, so that truncating it gives the same row as truncating the whole text. At most a
    million characters are taken, even if they give fewer tokens.
    """
    size = FEW * tokens
    while size < min(len(text), MOST):
        part = _end(text, size) if tokenizer.truncation_side == "left" else _beginning(text, size)
        if len(tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]) > tokens:
            return part
        size *= 4
    return text[-MOST:] if tokenizer.truncation_side == "left" else text[:MOST]


def _beginning(text: str, size: int) -> str:
    return "".join(text[:size].rsplit(maxsplit=1)[:1])


def _end(text: str, size: int) -> str:
    return "".join(text[-size:].split(maxsplit=1)[-1:])
