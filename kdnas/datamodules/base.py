"""The base class of the data modules: reads a dataset, tokenizes it once, batches it by length."""

from __future__ import annotations

import copy
import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from datasets import Dataset
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import ConcatDataset, DataLoader
from transformers import BatchEncoding
from transformers import PreTrainedTokenizerBase as Tokenizer

from kdnas.base.errors import ConfigError, is_number, require, require_whole
from kdnas.base.screen import activity
from kdnas.datamodules.bucketing import BucketSampler
from kdnas.datamodules.counting import HELD_OUT, TRAINING, TRANSFER, Account, Part, class_counts, repeated, values
from kdnas.datamodules.cutting import shortened
from kdnas.datamodules.flat import Flat, FlatCorpus, PadCollator
from kdnas.datamodules.masking import Masking, MaskingCollator
from kdnas.datamodules.reading import Source, not_utf8

LEAST_TOKENS = 8
"""The least `max_length`: room for the special tokens and a few others."""
HELD_OUT_SEED = 0
"""The seed that draws the held-out rows, whatever a run's seed is, so that metrics of several seeds are comparable."""
CUT = "cut"
"""The column that says whether a row was truncated."""


class EncodedDataModule(L.LightningDataModule):
    """Training and held-out rows, tokenized, in length-bucketed batches padded to their own longest row.

    Args:
        tokenizer: the teacher's tokenizer; None for a data module that only checks its settings.
        source: the dataset, as messages name it.
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
        rank, world: the index of this process among the `world` processes that share every batch (see `divide`).
        train, validation: the rows, once `setup` has read them.
        parts: the sources of each set's rows, and counts of the rows left out, by the set's name.
        further: further held-out splits by name, if `load` has any; `val_dataloader` then gives a list of loaders, of
            which the first decides.
        class_names: the names of the classes in the order of their ids, after `setup`; None if they have no names.

    Raises:
        ConfigError: a setting out of range, or (in `setup`) data that is missing, empty or without the columns.
    """

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
        require(is_number(proxy) and 0 < proxy <= 1, "data.proxy", proxy, "above 0 and at most 1")
        for name, value, least in (
            ("rows", 1 if rows is None else rows, 1),
            ("held_out", 1 if held_out is None else held_out, 1),
            ("max_length", max_length, LEAST_TOKENS),
            ("batch_size", batch_size, 1),
            ("batch_tokens", 2 * max_length if batch_tokens is None else batch_tokens, 1),
        ):
            require_whole(f"data.{name}", value, least)
        if batch_tokens is not None and batch_tokens < 2 * max_length:
            raise ConfigError(
                f"data.batch_tokens={batch_tokens}: must be at least {2 * max_length}, two of the longest rows"
            )
        if tokenizer is not None and masking is not None:
            masking.check(copy.deepcopy(tokenizer))
        self.source = source
        self.tokenizer = copy.deepcopy(tokenizer)  # encoding changes its truncation, which would be exported
        self.masking = masking
        self.proxy, self.rows, self.held_out = proxy, rows, held_out
        self.max_length, self.batch_size, self.seed = max_length, batch_size, seed
        self.batch_tokens = batch_tokens
        self.first_epoch = self.transfer_epochs = 0
        self.rank, self.world = 0, 1
        self.train: Dataset | None = None
        self.transfer: Dataset | None = None
        self.class_names: tuple[str, ...] | None = None
        self.validation: Dataset | None = None
        self.further: dict[str, Dataset] = {}
        self.parts: dict[str, list[Part]] = {}
        self._read: list[Dataset] = []
        self.collate = PadCollator(tokenizer.pad_token_id if tokenizer is not None else 0, max_length)
        self.corpus: FlatCorpus

    @abstractmethod
    def load(self) -> tuple[Dataset, Dataset]:
        """Reads and tokenizes training and held-out rows (see `encode`), shuffled; may set `transfer` and `further`."""

    def setup(self, stage: str | None = None) -> None:
        if self.train is not None:
            return
        try:
            train, self.validation = self.load()
        except UnicodeError as error:
            raise not_utf8(self.source, error) from error
        drawn = {TRAINING: self.fraction(train), HELD_OUT: self.validation, **self.further}
        if self.transfer is not None:
            drawn[TRANSFER] = self.fraction(self.transfer)
        accounts = {name: self._account(name, rows) for name, rows in drawn.items()}
        for account in accounts.values():
            account.check(self.source)
        self._read = [rows for rows in (train, self.transfer, self.validation, *self.further.values()) if rows]
        drawn = {name: rows.remove_columns(CUT) for name, rows in drawn.items()}
        self.train, self.validation, self.transfer = (drawn.get(name) for name in (TRAINING, HELD_OUT, TRANSFER))
        self.further = {name: drawn[name] for name in self.further}
        self.corpus = FlatCorpus(self.sets, self.collate)
        self._say(accounts, drawn)

    @property
    def classes(self) -> int | None:
        """The number of classes; None if it is not known before the rows are read, 1 for regression."""
        return None

    def read(self, name: str, source: Source, split: str, texts: Sequence[str], label: str | None = None) -> Part:
        """Reads rows of a split for the set of the given name."""
        part = source.read(split, texts, label)
        self.parts.setdefault(name, []).append(part)
        return part

    def _account(self, name: str, rows: Dataset) -> Account:
        share = f" (data.proxy={self.proxy})" if self.proxy < 1 and name in (TRAINING, TRANSFER) else ""
        classed = "labels" in rows.column_names and "int" in rows.features["labels"].dtype and self.classes != 1
        counts = class_counts(rows, self.classes, self.class_names) if classed else {}
        cut = int(values(rows, CUT).to_numpy().sum()) if len(rows) else 0
        return Account(name, self.parts.get(name, []), len(rows), share, cut, self.max_length, counts)

    @rank_zero_only
    def _say(self, accounts: Mapping[str, Account], drawn: Mapping[str, Dataset]) -> None:
        for name, account in accounts.items():
            scored = name not in (TRAINING, TRANSFER)
            again = repeated(self._flat(drawn[name]), self._flat(drawn[TRAINING])) if scored else 0
            origins = [{part.origin for part in accounts[one].parts} for one in (name, TRAINING)]
            account.say(again, scored and not origins[0].isdisjoint(origins[1]))

    @property
    def digest(self) -> str:
        """A digest of all rows that were read, with their labels, including the rows that the proxy leaves out."""
        corpus = self.corpus if self.proxy == 1 else FlatCorpus(self._read, self.collate)
        said = hashlib.sha256(corpus.digest.encode())
        for one in corpus.sets:
            said.update(b"none" if one.labels is None else one.labels.numpy().tobytes())
        return said.hexdigest()[:16]

    @property
    def texts_per_row(self) -> int:
        """The number of texts that are tokenized together: 2 where rows are pairs."""
        return 1

    @property
    def sets(self) -> list[Dataset]:
        """The sets of rows that are trained on or held out."""
        return [rows for rows in (self.train, self.transfer, self.validation, *self.further.values()) if rows]

    def divide(self, rank: int, world: int) -> None:
        """Makes the loaders give this process its shard of every batch: the `rank`-th of `world`.

        Raises:
            ConfigError: a batch or a held-out split has fewer rows than there are devices.
        """
        if self.batch_size < world:
            raise ConfigError(
                f"data.batch_size={self.batch_size}: must be at least {world}, the devices that share each batch"
            )
        for rows in (self.validation, *self.further.values()):
            if rows is not None and len(rows) < world:
                raise ConfigError(f"data.held_out={len(rows)}: must be at least {world}, the devices that share them")
        self.rank, self.world = rank, world

    def encode(self, dataset: Dataset, columns: Sequence[str], label: str | None = None) -> Dataset:
        """Tokenizes one text column, or two as a pair; keeps the label as `labels`."""

        def tokenize(rows: dict[str, list[Any]]) -> BatchEncoding:
            texts = [list(rows[column]) for column in columns]
            short = [[shortened(text, self.tokenizer, self.max_length) for text in column] for column in texts]
            encoded = self.tokenizer(*short, truncation=True, max_length=self.max_length)
            encoded[CUT] = self._cut(encoded, texts, short)
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

    def _cut(self, encoded: BatchEncoding, texts: list[list[str]], short: list[list[str]]) -> list[bool]:
        """Returns for each row whether it was truncated."""
        if encoded.encodings is None:  # a slow tokenizer's
            whole = self.tokenizer(*short, verbose=False)["input_ids"]
            over = [len(row) > self.max_length for row in whole]
        else:
            over = [bool(row.overflowing) for row in encoded.encodings]
        shorter = [one != other for one, other in zip(zip(*texts, strict=True), zip(*short, strict=True), strict=True)]
        return [a or b for a, b in zip(over, shorter, strict=True)]

    def _fingerprint(self, dataset: Dataset, columns: Sequence[str], label: str | None) -> str:
        """Returns the fingerprint by which `datasets` caches tokenized rows; its own would hash all of this object."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        rules = json.loads(backend.to_str()) if backend is not None else {"vocabulary": self.tokenizer.get_vocab()}
        rules |= {"truncation": None, "padding": None}  # set by the last call
        settings = [self.tokenizer.truncation_side, list(self.tokenizer.model_input_names), self.max_length]
        said = [dataset._fingerprint, type(self.tokenizer).__name__, rules, settings, list(columns), label, CUT]
        # The rules of a slow tokenizer are in its arguments.
        more = f"{self.masking} {'' if backend is not None else self.tokenizer.init_kwargs}"
        return hashlib.sha256(f"{json.dumps(said, sort_keys=True)} {more}".encode()).hexdigest()[:16]

    def sample(self, part: Part, rows: int | None, seed: int, key: str) -> None:
        """Shuffles a part's rows and keeps the first `rows`; `key` is the setting that limits them."""
        part.rows = part.rows.shuffle(seed=seed)
        if rows and rows < len(part.rows):
            part.keep(part.rows.select(range(rows)), f"over {key}={rows}")

    def fraction(self, rows: Dataset) -> Dataset:
        """Returns the first rows, up to the proxy's share; the rows are already shuffled."""
        return rows.select(range(max(1, round(self.proxy * len(rows)))))

    def held_out_batches(self) -> Iterator[tuple[int, BatchEncoding]]:
        """Yields batches of every held-out row, undivided between devices, each with the index of its split."""
        for split, rows in enumerate((self.validation, *self.further.values())):
            assert rows is not None, "setup() comes first"
            yield from ((split, batch) for batch in self.corpus.batches_of(self._flat(rows)))

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.train is not None, "setup() comes first"
        train = self._flat(self.train)
        if self.transfer is None or self._epoch() >= self.transfer_epochs:
            return self._loader([train], shuffle=True)
        return self._loader([train.unlabelled(), self._flat(self.transfer)], shuffle=True)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        assert self.validation is not None, "setup() comes first"
        loaders = [
            self._loader([self._flat(rows)], shuffle=False) for rows in (self.validation, *self.further.values())
        ]
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
