"""Masked text: which tokens a model has to predict, as a function of the seed, the epoch and the batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BatchEncoding, DataCollatorForLanguageModeling
from transformers import PreTrainedTokenizerBase as Tokenizer

from kdnas.base.errors import ConfigError, is_number, require, require_switch

WORDS = "words"
"""The column that numbers the word of each token."""


@dataclass(frozen=True)
class Masking:
    """BERT's masking (Devlin et al., 2019, section 3.1).

    Of the tokens that are chosen, 80 % become the mask token, 10 % a random token, and 10 % stay as they are. Special
    tokens (the unknown token too) and padding are never chosen.

    Args:
        probability: the probability of each token, or word, to be chosen.
        whole_word: whether to choose words, each with all its tokens; 80, 10 and 10 % still count by token, as in
            BERT. Words are what a fast tokenizer splits a text into before it looks for subwords.
    """

    probability: float = 0.15
    whole_word: bool = False

    def __post_init__(self) -> None:
        fits = is_number(self.probability) and 0 < self.probability < 1
        require(fits, "probability", self.probability, "above 0 and below 1")
        require_switch("whole_word", self.whole_word)

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuses a tokenizer without a mask token and, for whole words, one that does not number words."""
        if tokenizer.mask_token is None:
            raise ConfigError.of("masking", ": the teacher's tokenizer has no mask token; must be null")
        if self.whole_word and not (tokenizer.is_fast and len({*tokenizer("two words").word_ids()} - {None}) == 2):
            raise ConfigError.of("masking.whole_word", "=true: the teacher's tokenizer does not tell words apart")

    def annotate(self, encoded: BatchEncoding) -> None:
        """Adds the columns that the collator needs to tokenized rows: with whole words, each token's word number."""
        if self.whole_word:
            rows = (encoded.word_ids(i) for i in range(len(encoded["input_ids"])))
            encoded[WORDS] = [[-1 if word is None else word for word in row] for row in rows]


class MaskingCollator:
    """Makes a batch and masks it: `labels` (rows, length) hold the chosen tokens, and -100 elsewhere.

    Seed, epoch and the batch's tokens decide the masks. Where several devices share a batch, each masks its own rows,
    and not as one device would mask them all.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        masking: Masking,
        seed: int,
        epoch: Callable[[], int],
        collate: Callable[[Sequence[Any]], BatchEncoding],
    ) -> None:
        self.seed, self.epoch, self.collate = seed, epoch, collate
        self.masker = DataCollatorForLanguageModeling(tokenizer, mlm_probability=masking.probability)
        self.masker.whole_word_mask = masking.whole_word  # as an argument it would turn off 80, 10 and 10 %
        self.special = torch.tensor(tokenizer.all_special_ids)

    def __call__(self, rows: Sequence[Any]) -> BatchEncoding:
        batch = self.collate(rows)
        tokens = batch["input_ids"]
        seed = hash((self.seed, self.epoch(), *tokens.flatten().tolist())) % 2**63
        self.masker.generator = torch.Generator().manual_seed(seed)
        # Word numbers dressed as character offsets, (rows, length, 2): the masker begins a word where a token does not
        # start at the end of the one before. True offsets would glue punctuation to words and Chinese into one word,
        # and cut characters that byte-level tokenizers split.
        words = torch.stack([batch.pop(WORDS)] * 2, dim=-1) if self.masker.whole_word_mask else None
        special = torch.isin(tokens, self.special)
        batch["input_ids"], batch["labels"] = self.masker.torch_mask_tokens(tokens, special, words)
        return batch
