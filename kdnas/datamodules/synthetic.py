"""The built-in task: language inference over a small grammar, generated without network access."""

from typing import Any

from datasets import Dataset
from transformers import BertConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from kdnas.datamodules import grammar
from kdnas.datamodules.examples import HELD_OUT, TRAINING, Examples
from kdnas.datamodules.labelled import LabelledDataModule
from kdnas.models.checkpoints import ModelSource
from kdnas.models.heads import Classifier
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


class Untrained(ModelSource):
    """A random BERT over the grammar's vocabulary: the teacher to be trained."""

    def __init__(self, **architecture: Any) -> None:
        self.architecture = architecture

    def __call__(self, head: Classifier) -> tuple[PreTrainedModel, Tokenizer]:
        tokenizer = grammar.tokenizer()
        sizes: dict[str, Any] = {"max_position_embeddings": tokenizer.model_max_length, **self.architecture}
        config = BertConfig(vocab_size=len(tokenizer), **sizes)
        head.describe(config)
        return head.make(config), tokenizer
