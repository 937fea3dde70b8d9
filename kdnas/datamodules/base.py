"""The base class of the data modules: sets of tokenized rows, in batches of like length."""

import copy
import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader
from transformers import BatchEncoding
from transformers import PreTrainedTokenizerBase as Tokenizer

from kdnas.base.errors import is_number, require, require_whole
from kdnas.datamodules.bucketing import BucketSampler
from kdnas.datamodules.examples import HELD_OUT, TRAINING, TRANSFER, Examples, Summary, repeated
from kdnas.datamodules.flat import Flat, FlatCorpus, PadCollator
from kdnas.datamodules.masking import Masking, MaskingCollator
from kdnas.datamodules.source import Source
from kdnas.datamodules.tokenization import TRUNCATED, RowTokenizer
from kdnas.tasks.labels import column_values

LEAST_TOKENS = 8
"""The least `max_length`: room for the special tokens and a few others."""
HELD_OUT_SEED = 0
"""The seed that draws the held-out rows, whatever a run's seed is, so that metrics of several seeds are comparable."""


class EncodedDataModule(LightningDataModule):
    """Training and held-out rows, tokenized, in length-bucketed batches padded to their own longest row.

    Args:
        tokenizer: the teacher's tokenizer; None for a data module that only checks its settings.
        proxy: the fraction of the training rows to train on, drawn once from the seed.
        rows: the most training rows, before the proxy is drawn; None for all.
        held_out: the most held-out rows, the same ones whatever the seed; None for all.
        max_length: the most tokens of a row; longer rows are truncated.
        batch_size: rows a batch over all devices, so that a run does not depend on the number of devices.
        batch_tokens: the approximate number of tokens a batch, in place of `batch_size`.
        seed: draws the proxy and the limited rows, the order and the masks.
        masking: hides tokens and gives them as `labels`; None leaves the text as it is.

    Attributes:
        transfer: further rows without labels, which the first `transfer_epochs` train on too; None if there are none.
        transfer_epochs: the number of epochs that need no labels, taken from the module.
        first_epoch: the epoch that a resumed run goes on with.
        examples: each set's rows by source, and counts of the rows left out, by the set's name.
        further: further held-out splits by name, if `load` has any; `val_dataloader` then gives a list of loaders, of
            which the first decides.
        class_names: the names of the classes in the order of their ids, after `setup`; None if they have no names.

    Raises:
        ConfigError: a setting out of range, or (in `setup`) data that is missing, empty or without the columns.
    """

    class_names: tuple[str, ...] | None = None

    def __init__(
        self,
        tokenizer: Tokenizer,
        source: Source,
        proxy: float = 1.0,
        rows: int | None = None,
        held_out: int | None = None,
        max_length: int = 128,
        batch_size: int = 32,
        batch_tokens: int | None = None,
        seed: int = 0,
        masking: Masking | None = None,
    ) -> None:
        super().__init__()
        require(is_number(proxy) and 0 < proxy <= 1, "proxy", proxy, "above 0 and at most 1")
        for name, value, least in (
            ("rows", 1 if rows is None else rows, 1),
            ("held_out", 1 if held_out is None else held_out, 1),
            ("max_length", max_length, LEAST_TOKENS),
            ("batch_size", batch_size, 1),
            ("batch_tokens", 2 * max_length if batch_tokens is None else batch_tokens, 1),
        ):
            require_whole(name, value, least)
        enough = batch_tokens is None or batch_tokens >= 2 * max_length
        require(enough, "batch_tokens", batch_tokens, f"at least {2 * max_length}, two of the longest rows")
        if tokenizer is not None and masking is not None:
            masking.check(copy.deepcopy(tokenizer))
        self.source = source
        self.tokenizer = copy.deepcopy(tokenizer)  # encoding changes its truncation, which would be exported
        self.masking = masking
        self.encode = RowTokenizer(self.tokenizer, max_length, masking)
        self.proxy, self.rows, self.held_out = proxy, rows, held_out
        self.max_length, self.batch_size, self.seed = max_length, batch_size, seed
        self.batch_tokens = batch_tokens
        self.first_epoch = self.transfer_epochs = 0
        self.rank, self.world = 0, 1
        self.train: Dataset | None = None
        self.transfer: Dataset | None = None
        self.validation: Dataset | None = None
        self.further: dict[str, Dataset] = {}
        self.examples: dict[str, list[Examples]] = {}
        self._read: list[Dataset] = []
        self.collate = PadCollator(tokenizer.pad_token_id if tokenizer is not None else 0, max_length)
        self.corpus: FlatCorpus

    # -- the rows

    @abstractmethod
    def load(self) -> tuple[Dataset, Dataset]:
        """Reads and tokenizes training and held-out rows (see `encode`), shuffled; may set `transfer` and `further`."""

    def setup(self, stage: str | None = None) -> None:
        if self.train is not None:
            return
        try:
            train, self.validation = self.load()
        except UnicodeError as error:
            raise self.source.not_utf8(error) from error
        sets = {TRAINING: self.fraction(train), HELD_OUT: self.validation, **self.further}
        if self.transfer is not None:
            sets[TRANSFER] = self.fraction(self.transfer)
        summaries = {name: self._summary(name, rows) for name, rows in sets.items()}
        for summary in summaries.values():
            summary.check(self.source.error)
        self._read = [rows for rows in (train, self.transfer, self.validation, *self.further.values()) if rows]
        sets = {name: rows.remove_columns(TRUNCATED) for name, rows in sets.items()}
        self.train, self.validation, self.transfer = (sets.get(name) for name in (TRAINING, HELD_OUT, TRANSFER))
        self.further = {name: sets[name] for name in self.further}
        self.corpus = FlatCorpus(self.sets, self.collate)
        self._log(summaries, sets)

    def read(self, name: str, source: Source, split: str, texts: Sequence[str], label: str | None = None) -> Examples:
        examples = source.read(split, texts, label)
        self.examples.setdefault(name, []).append(examples)
        return examples

    def fraction(self, rows: Dataset) -> Dataset:
        """Returns the first rows, up to the proxy's share; the rows are already shuffled."""
        return rows.select(range(max(1, round(self.proxy * len(rows)))))

    def class_counts(self, rows: Dataset) -> Mapping[str, int]:
        """Counts the tokenized rows of each class; empty without classes."""
        return {}

    def _summary(self, name: str, rows: Dataset) -> Summary:
        proxy = self.proxy if name in (TRAINING, TRANSFER) else 1.0
        truncated = int(column_values(rows, TRUNCATED).to_numpy().sum()) if len(rows) else 0
        examples = self.examples.get(name, [])
        return Summary(name, examples, len(rows), proxy, truncated, self.max_length, self.class_counts(rows))

    @rank_zero_only
    def _log(self, summaries: Mapping[str, Summary], sets: Mapping[str, Dataset]) -> None:
        origins = {name: {part.origin for part in summary.examples} for name, summary in summaries.items()}
        for name, summary in summaries.items():
            scored = name not in (TRAINING, TRANSFER)
            known = repeated(self._flat(sets[name]), self._flat(sets[TRAINING])) if scored else 0
            summary.log(known, scored and not origins[name].isdisjoint(origins[TRAINING]))

    @property
    def digest(self) -> str:
        """A digest of all rows that were read, with their labels, including the rows that the proxy leaves out."""
        corpus = self.corpus if self.proxy == 1 else FlatCorpus(self._read, self.collate)
        digest = hashlib.sha256(corpus.digest.encode())
        for one in corpus.sets:
            digest.update(b"none" if one.labels is None else one.labels.numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def texts_per_row(self) -> int:
        """The number of texts that are tokenized together: 2 where rows are pairs."""
        return 1

    @property
    def sets(self) -> list[Dataset]:
        return [rows for rows in (self.train, self.transfer, *self._held_out) if rows]

    @property
    def held_out_labels(self) -> list[Tensor]:
        """The labels of each held-out split, in the order of its rows; empty if the rows have none."""
        return [labels for rows in self._held_out if (labels := self._flat(rows).labels) is not None]

    @property
    def _held_out(self) -> list[Dataset]:
        return [rows for rows in (self.validation, *self.further.values()) if rows]

    # -- the batches

    def divide(self, rank: int, world: int) -> None:
        """Makes the loaders give this process its shard of every batch, which needs at least `world` rows."""
        least = f"at least {world}, the devices that share"
        require(self.batch_size >= world, "batch_size", self.batch_size, f"{least} each batch")
        for rows in self._held_out:
            require(len(rows) >= world, "held_out", len(rows), f"{least} them")
        self.rank, self.world = rank, world

    def held_out_batches(self) -> Iterator[tuple[int, BatchEncoding]]:
        """Yields batches of every held-out row, undivided between devices, each with the index of its split."""
        for split, rows in enumerate(self._held_out):
            yield from ((split, batch) for batch in self.corpus.batches_of(self._flat(rows)))

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.train is not None, "setup() comes first"
        train = self._flat(self.train)
        if self.transfer is None or self._epoch() >= self.transfer_epochs:
            return self._loader([train], shuffle=True)
        return self._loader([train.unlabelled(), self._flat(self.transfer)], shuffle=True)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        loaders = [self._loader([self._flat(rows)], shuffle=False) for rows in self._held_out]
        return loaders if self.further else loaders[0]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch.to(device, non_blocking=True)  # Lightning's own copy is blocking

    def _flat(self, rows: Dataset) -> Flat:
        return self.corpus.sets[next(i for i, known in enumerate(self.sets) if known is rows)]

    def _loader(self, parts: Sequence[Flat], shuffle: bool) -> DataLoader[Any]:
        lengths = torch.cat([part.lengths for part in parts])
        sampler = BucketSampler(
            lengths, self.batch_size, shuffle, self.seed, self._epoch, self.rank, self.world, self.batch_tokens
        )
        collate: Callable[[Any], BatchEncoding] = self.collate
        if self.masking is not None:  # held-out masks are the same in every epoch
            epoch = self._epoch if shuffle else lambda: -1
            collate = MaskingCollator(self.tokenizer, self.masking, self.seed, epoch, self.collate)
        pinned = torch.cuda.is_available()  # batches are then copied while the device computes
        return DataLoader(ConcatDataset(parts), batch_sampler=sampler, collate_fn=collate, pin_memory=pinned)

    def _epoch(self) -> int:
        # Lightning fetches a resumed run's first batch before it restores the epoch.
        return max(self.first_epoch, self.trainer.current_epoch if self.trainer is not None else 0)
