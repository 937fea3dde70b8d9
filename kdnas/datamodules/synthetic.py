"""The built-in task: language inference over a small grammar, generated without network access."""

from typing import Any

from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification
from transformers import PreTrainedTokenizerBase as Tokenizer

from kdnas.datamodules import grammar
from kdnas.datamodules.examples import HELD_OUT, TRAINING, Examples
from kdnas.datamodules.labelled import LabelledDataModule
from kdnas.tasks import Classification
from kdnas.tasks.metrics import accuracy

UNLIKE_OTHERS = 1_000_003
"""The seed of the held-out pairs, far from any seed that a user would train with."""


class SyntheticNLI(LabelledDataModule):
    """NLI pairs from `kdnas.datamodules.grammar`; no held-out pair is among the training pairs."""

    def __init__(self, rows: int = 12_000, held_out: int = 1_000, **settings: Any) -> None:
        self.pairs, self.held_out_pairs = rows, held_out
        task = Classification(
            len(grammar.CLASSES),
            grammar.CLASSES,
            metrics={"accuracy": accuracy(len(grammar.CLASSES))},
            columns=["premise", "hypothesis"],
            path="(built in)",
        )
        super().__init__(task, rows=rows, held_out=held_out, **settings)

    def load(self) -> tuple[Dataset, Dataset]:
        held_out = grammar.pairs(self.held_out_pairs, UNLIKE_OTHERS)
        unseen = {(pair["premise"], pair["hypothesis"]) for pair in held_out}
        drawn = grammar.pairs(self.pairs, self.seed)
        others = [pair for pair in drawn if (pair["premise"], pair["hypothesis"]) not in unseen]
        sets = {
            TRAINING: Examples(Dataset.from_list(drawn), "made for training"),
            HELD_OUT: Examples(Dataset.from_list(held_out), "made for scoring"),
        }
        sets[TRAINING].keep(Dataset.from_list(others), "held out")
        self.examples = {name: [examples] for name, examples in sets.items()}
        return self.encode_all(sets)


def untrained(num_labels: int, **architecture: Any) -> tuple[BertForSequenceClassification, Tokenizer]:
    """Makes a random BERT over the grammar's vocabulary, and its tokenizer: the teacher to be trained."""
    tokenizer = grammar.tokenizer()
    positions = tokenizer.model_max_length
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "max_position_embeddings": positions}
    config = BertConfig(**sizes, **architecture)
    config.num_labels = num_labels
    return BertForSequenceClassification(config), tokenizer
