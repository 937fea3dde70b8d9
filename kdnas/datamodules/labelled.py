"""Labelled single texts or pairs: GLUE's tasks, and datasets of the same form."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from datasets import Dataset, concatenate_datasets

from kdnas.base.errors import require
from kdnas.datamodules.base import HELD_OUT_SEED, EncodedDataModule
from kdnas.datamodules.examples import HELD_OUT, TRAINING, TRANSFER, Examples
from kdnas.datamodules.source import Source, check_columns, further_source
from kdnas.tasks.base import LabelledTask
from kdnas.tasks.labels import LabelError, Labels


class LabelledDataModule(EncodedDataModule):
    """The rows of a task. Distillation uses the same rows, and their labels only in stages that learn them.

    Args:
        task: the task; it encodes the labels.
        path, name, files, csv: the dataset (see `Source`); without path and files, the task's.
        columns: one text column, or two columns of pairs; None for the task's.
        label: the column of labels. Rows without a label are left out.
        split: the split to train on.
        validation: the split to hold out; None for the task's.
        also: further splits to hold out, by the suffix of their metrics' names (as MNLI's mismatched split).
        extra: further sources to train on, each a mapping with `path` (or `files`), `columns` and, optionally,
            `name`, `csv`, `split` and `label`. With a label (whose class names must be the task's) they are training
            rows like the task's own; with `label: null` they are a transfer set for the stages that need no labels. A
            text or pair that an earlier row or a held-out row holds is left out.
        settings: arguments of `EncodedDataModule`; `rows` limits each source.
    """

    labels: Labels

    def __init__(
        self,
        task: LabelledTask,
        path: str | None = None,
        columns: Sequence[str] | None = None,
        name: str | None = None,
        files: Mapping[str, Any] | None = None,
        csv: Mapping[str, Any] | None = None,
        label: str = "label",
        split: str = "train",
        validation: str | None = None,
        also: Mapping[str, str] | None = None,
        extra: Sequence[Mapping[str, Any]] = (),
        **settings: Any,
    ) -> None:
        if path is None and files is None:
            path, name = task.path, name or task.subset
        super().__init__(source=Source(path, name, files, csv), **settings)
        require(also is None or isinstance(also, Mapping), "also", also, "splits by name")
        require(isinstance(extra, list | tuple), "extra", extra, "a list of sources")
        self.task, self.label = task, label
        self.columns = check_columns(task.columns if columns is None else columns)
        self.split, self.validation_split = split, validation or task.validation
        self.also = dict(also or {})
        self.extra = [further_source(one, ("split", "label"), f"extra.{i}") for i, one in enumerate(extra)]

    @property
    def texts_per_row(self) -> int:
        return len(self.columns)

    def load(self) -> tuple[Dataset, Dataset]:
        splits = {TRAINING: self.split, HELD_OUT: self.validation_split, **self.also}
        return self.encode_all(
            {name: self.read(name, self.source, split, self.columns, self.label) for name, split in splits.items()}
        )

    def encode_all(self, sets: dict[str, Examples]) -> tuple[Dataset, Dataset]:
        """Filters, labels and tokenizes the examples of each set; keeps further held-out splits as `further`."""
        for examples in sets.values():
            examples.keep_texts(self.columns)
        with _blaming(self.source):
            self.labels = self.task.read_labels({name: one.rows for name, one in sets.items()}, self.label)
        self.class_names = self.labels.names
        for examples in sets.values():
            examples.keep(self.labels.encode(examples.rows, self.label), "without label")
        train, *held_out = sets.values()
        train.sample(self.rows, self.seed, "data.rows")
        rows = self._extend(train, held_out) if self.extra else train.rows
        for examples in held_out:
            examples.sample(self.held_out, HELD_OUT_SEED, "data.held_out")
        self.further = {name: self.encode(sets[name].rows, self.columns, self.label) for name in self.also}
        return self.encode(rows, self.columns, self.label), self.encode(sets[HELD_OUT].rows, self.columns, self.label)

    def class_counts(self, rows: Dataset) -> Mapping[str, int]:
        return self.labels.counts(rows, "labels") if "labels" in rows.column_names else {}

    def _extend(self, train: Examples, held_out: Sequence[Examples]) -> Dataset:
        train.rows = train.rows.select_columns([*self.columns, self.label])
        for source, settings in self.extra:
            self._read_further(source, **settings)
        known = {text for examples in held_out for text in texts(examples.rows, self.columns)}
        labelled = [train, *self.examples[TRAINING][1:]]
        unlabelled = self.examples.get(TRANSFER, [])
        for examples in (*labelled, *unlabelled):
            examples.keep(new_rows(examples.rows, self.columns, known), "known already or held out")
        if unlabelled:
            together = concatenate_datasets([examples.rows for examples in unlabelled]).shuffle(seed=self.seed)
            self.transfer = self.encode(together, self.columns)
        return concatenate_datasets([examples.rows for examples in labelled]).shuffle(seed=self.seed)

    def _read_further(
        self, source: Source, columns: Sequence[str], split: str = "train", label: str | None = "label"
    ) -> None:
        count = len(self.columns)
        require(len(columns) == count, f"{source.prefix}columns", columns, f"{count}, as the task's")
        examples = self.read(TRAINING if label else TRANSFER, source, split, columns, label)
        names = dict(zip([*columns, *([label] if label else [])], [*self.columns, self.label], strict=False))
        rows = examples.rows.select_columns(list(names))
        examples.rows = rows.rename_columns({a: b for a, b in names.items() if a != b})
        examples.keep_texts(self.columns)
        if label:
            with _blaming(source):
                labels = self.labels.of_further(examples.rows, self.label)
            examples.keep(labels.encode(examples.rows, self.label), "without label")
        examples.sample(self.rows, self.seed, "data.rows")


@contextmanager
def _blaming(source: Source) -> Iterator[None]:
    try:
        yield
    except LabelError as error:
        raise source.error(str(error)) from error


def texts(rows: Dataset, columns: Sequence[str]) -> set[tuple[str, ...]]:
    return set(zip(*(rows[column] for column in columns), strict=True))


def new_rows(rows: Dataset, columns: Sequence[str], known: set[tuple[str, ...]]) -> Dataset:
    """Returns the rows whose texts are not in `known`, each text once, and adds them to `known`."""
    keep = []
    for index, text in enumerate(zip(*(rows[column] for column in columns), strict=True)):
        if text not in known:
            known.add(text)
            keep.append(index)
    return rows.select(keep)
