"""What every data module here shares: reading a dataset, tokenizing it once, batching it by length."""

from __future__ import annotations

import copy
import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Value, load_dataset
from datasets.exceptions import DatasetGenerationError
from torch.utils.data import ConcatDataset, DataLoader
from transformers import BatchEncoding
from transformers import PreTrainedTokenizerBase as Tokenizer

from kdnas.datamodules.bucketing import BucketSampler
from kdnas.datamodules.flat import Flat, FlatCorpus, PadCollator
from kdnas.datamodules.masking import Masking, MaskingCollator
from kdnas.errors import ConfigError, is_number, require, require_whole, shown
from kdnas.models import reading
from kdnas.screen import activity

LEAST_TOKENS = 8
"""Tokens that a row must have room for: the special ones, and something between them."""
NESTED = "lists or the like"
"""What a column holds that has several values a row."""


class EncodedDataModule(L.LightningDataModule):
    """Train and held-out rows, tokenized, in length-bucketed batches padded to their own longest row.

    Args:
        tokenizer: the teacher's.
        source: the dataset, as messages name it.
        proxy: the fraction of the training rows to train on, drawn once from the seed.
        rows: at most so many training rows before that; None for all.
        held_out: at most so many held-out rows; None for all.
        max_length: tokens of a row; what is longer is cut.
        batch_size: rows a batch, over all devices: a run's course does not depend on how many there are.
        batch_tokens: tokens a batch, about, in place of rows: batches of short rows then have more of them.
        seed: of the proxy, the row limits, the order and the masks.
        masking: hides tokens and gives them as `labels`; None leaves the text as it is.

    Attributes:
        transfer: rows without labels to train on as well, in the first `transfer_epochs`; None if there are none.
        transfer_epochs: set by whom the labels are for.
        first_epoch: the one that a resumed run goes on with.
        rank, world: this process's share of every batch, and of how many (see `divide`).
        train, validation: the rows, once `setup` has read them.
        further: more held-out rows by name, if `load` has any; `val_dataloader` then gives a list of loaders, the
            first of which decides.
        class_names: of the labels' classes in the order of their ids, once `setup` has read them; None for none.

    Raises:
        ConfigError: a setting out of range, or (in `setup`) data that is missing, empty or without the columns.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        source: str,
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
        if tokenizer is not None and max_length > tokenizer.model_max_length:
            raise ConfigError(
                f"data.max_length={max_length}: must be at most the teacher's {tokenizer.model_max_length}"
            )
        if tokenizer is not None and masking is not None:
            masking.check(tokenizer)
        self.source = source
        self.tokenizer = copy.deepcopy(tokenizer)  # encoding sets its truncation, with which it would be exported
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
        self._read: list[Dataset] = []
        self.collate = PadCollator(tokenizer.pad_token_id if tokenizer is not None else 0, max_length)
        self.corpus: FlatCorpus

    @abstractmethod
    def load(self) -> tuple[Dataset, Dataset]:
        """Tokenized training and held-out rows (see `encode`), in a random order; may set `transfer` and `further`."""

    def setup(self, stage: str | None = None) -> None:
        if self.train is not None:
            return
        try:
            train, validation = self.load()
        except UnicodeError as error:
            raise ConfigError(f"data.path={self.source}: holds text that is not UTF-8 ({error})") from error
        for name, rows in (("training", train), ("held-out", validation), *self.further.items()):
            if not len(rows):
                raise ConfigError(f"data.path={self.source}: leaves no {name} rows (without text, or without a label)")
        self._read = [rows for rows in (train, self.transfer, validation, *self.further.values()) if rows]
        self.train, self.validation = self.fraction(train), validation
        self.transfer = self.fraction(self.transfer) if self.transfer is not None else None
        self.corpus = FlatCorpus(self.sets, self.collate)

    @property
    def digest(self) -> str:
        """What identifies the rows that were read, with their labels: those that the proxy leaves out as well."""
        corpus = self.corpus if self.proxy == 1 else FlatCorpus(self._read, self.collate)
        said = hashlib.sha256(corpus.digest.encode())
        for one in corpus.sets:
            said.update(b"none" if one.labels is None else one.labels.numpy().tobytes())
        return said.hexdigest()[:16]

    @property
    def texts_per_row(self) -> int:
        """The most texts that are tokenized together: 2 where rows are pairs."""
        return 1

    @property
    def sets(self) -> list[Dataset]:
        """All rows that are trained on or held out."""
        return [rows for rows in (self.train, self.transfer, self.validation, *self.further.values()) if rows]

    def divide(self, rank: int, world: int) -> None:
        """Makes the loaders give one of `world` shares of every batch.

        Raises:
            ConfigError: too few rows for every device to have one, of a batch or held out.
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
        self.check_texts(dataset, columns)

        def tokenize(rows: dict[str, list[Any]]) -> BatchEncoding:
            texts = [list(rows[column]) for column in columns]
            encoded = self.tokenizer(*texts, truncation=True, max_length=self.max_length)
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

    def _fingerprint(self, dataset: Dataset, columns: Sequence[str], label: str | None) -> str:
        """Names tokenized rows, so that `datasets` finds them again; its own names hold all of this object's state."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        rules = json.loads(backend.to_str()) if backend is not None else {"vocabulary": self.tokenizer.get_vocab()}
        rules |= {"truncation": None, "padding": None}  # which the last call has left behind
        settings = [self.tokenizer.truncation_side, list(self.tokenizer.model_input_names), self.max_length]
        said = [dataset._fingerprint, type(self.tokenizer).__name__, rules, settings, list(columns), label]
        # A slow tokenizer's rules are in what it was made from.
        more = f"{self.masking} {'' if backend is not None else self.tokenizer.init_kwargs}"
        return hashlib.sha256(f"{json.dumps(said, sort_keys=True)} {more}".encode()).hexdigest()[:16]

    def check_texts(self, dataset: Dataset, columns: Sequence[str]) -> None:
        """Refuses columns that do not hold text."""
        for column in columns:
            kind = kind_of(dataset, column)
            if "string" not in kind:
                raise ConfigError(f"data.path={self.source}: column {column} holds {kind}; must be string")

    def sample(self, dataset: Dataset, rows: int | None) -> Dataset:
        """The rows in a random order of the seed's, cut to at most `rows`."""
        shuffled = dataset.shuffle(seed=self.seed)
        return shuffled.select(range(min(rows, len(shuffled)))) if rows else shuffled

    def fraction(self, rows: Dataset) -> Dataset:
        """The proxy's share of rows, which are in a random order."""
        return rows.select(range(max(1, round(self.proxy * len(rows)))))

    def held_out_batches(self) -> Iterator[tuple[int, BatchEncoding]]:
        """Batches of every held-out row, whatever the devices, each with the number of its split; the first decides."""
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
        return batch.to(device, non_blocking=True)  # Lightning would wait for each of its tensors

    def _flat(self, rows: Dataset) -> Flat:
        return self.corpus.sets[next(i for i, known in enumerate(self.sets) if known is rows)]

    def _loader(self, parts: Sequence[Flat], shuffle: bool) -> DataLoader[Any]:
        lengths = torch.cat([part.lengths for part in parts])
        sampler = BucketSampler(
            lengths, self.batch_size, shuffle, self.seed, self._epoch, self.rank, self.world, self.batch_tokens
        )
        collate: Callable[[Any], BatchEncoding] = self.collate
        if self.masking is not None:  # held-out masks are always the same
            epoch = self._epoch if shuffle else lambda: -1
            collate = MaskingCollator(self.tokenizer, self.masking, self.seed, epoch, self.collate)
        pinned = torch.cuda.is_available()  # so that batches travel while the device is at work
        return DataLoader(ConcatDataset(parts), batch_sampler=sampler, collate_fn=collate, pin_memory=pinned)

    def _epoch(self) -> int:
        # Lightning draws a resumed run's first batch before it restores the epoch.
        return max(self.first_epoch, self.trainer.current_epoch if self.trainer is not None else 0)


def kind_of(dataset: Dataset, column: str) -> str:
    """What a column holds, as `string` or `int64`; `NESTED` where that is not one value a row."""
    feature = dataset.features[column]
    return feature.dtype if isinstance(feature, Value | ClassLabel) else NESTED


def read_dataset(path: str, name: str | None = None) -> DatasetDict:
    """A dataset on the hub or in a local folder laid out like one.

    Raises:
        ConfigError: nothing readable there.
    """
    if not isinstance(path, str) or not path:
        raise ConfigError(f"data.path={shown(path)}: must be a folder that holds a dataset, or a hub id")
    with reading("data.path", f"{path}, name {name}" if name else path, "dataset"):
        try:
            return load_dataset(path, name)  # which runs no code that comes with a dataset
        except DatasetGenerationError as error:
            raise error.__cause__ or error from None  # which says what is wrong


def check_columns(columns: Any) -> list[str]:
    """The text columns as they are given, if they can be some."""
    fits = isinstance(columns, Sequence) and not isinstance(columns, str) and 1 <= len(columns) <= 2
    if not fits or not all(isinstance(column, str) for column in columns):
        raise ConfigError(
            f"data.columns={shown(columns)}: must be a list of one text column, or of two that make a pair"
        )
    return list(columns)


def check_source(source: Any, optional: Sequence[str]) -> Mapping[str, Any]:
    """A further source as it is given, if it can be one."""
    keys = set(source) if isinstance(source, Mapping) else set()
    if not {"path", "columns"} <= keys <= {"path", "columns", *optional}:
        raise ConfigError(f"data.extra: {source}: must have path and columns, and may have {', '.join(optional)}")
    check_columns(source["columns"])
    return source


def take_split(dataset: DatasetDict, path: str, split: str, columns: Sequence[str]) -> Dataset:
    """One split, checked to hold rows and the columns; without the rows that have nothing in one of them."""
    if split not in dataset:
        raise ConfigError(f"data.path={path}: has no split {split}; it has {', '.join(dataset)}")
    rows = dataset[split]
    for column in columns:
        if column not in rows.column_names:
            raise ConfigError(
                f"data.path={path}: {split} has no column {column}; it has {', '.join(rows.column_names)}"
            )
    if not len(rows):
        raise ConfigError(f"data.path={path}: {split} holds no rows")
    for column in columns:
        if getattr(rows.features[column], "dtype", None) == "large_string":  # as some writers have it; no other type
            rows = rows.cast_column(column, Value("string"))
    if any(rows.data.column(column).null_count for column in columns):
        rows = rows.filter(
            lambda *values: [None not in row for row in zip(*values, strict=True)],
            input_columns=list(columns),
            batched=True,
        )
    return rows
