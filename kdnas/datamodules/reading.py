"""Reads rows from a dataset on the hub, a local folder of the same layout, or files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from glob import escape, glob
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetBuilder, Features, Value, load_dataset_builder
from datasets.exceptions import DatasetGenerationError

from kdnas.base.errors import ConfigError, require, shown
from kdnas.base.files import reading
from kdnas.datamodules.counting import Part
from kdnas.datamodules.dialect import as_numbers, check_options, header, options_of, quote_notes

READERS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
"""The builder of `datasets` that reads a file, by its ending."""
COMPRESSED = (".gz", ".bz2", ".xz")
SAVED = ("state.json", "dataset_dict.json")
"""Files that a folder has if `save_to_disk` wrote it."""
NESTED = "lists or the like"
"""The description, in messages, of a column with several values a row."""


class Source:
    """A dataset whose splits are read one by one, so that a broken split that is not used does no harm.

    Args:
        path: a hub id, a folder, or a file (its rows are the split `train`).
        name: the name of the dataset's config.
        files: in place of both, files by split: for each a path, a pattern, or a list of these, relative to `path` if
            it is a folder.
        csv: options of `pandas.read_csv`; null ones take the defaults of `kdnas.datamodules.dialect`.
        key: the setting that holds these arguments.

    Raises:
        ConfigError: the arguments name no dataset, or a file does not exist.
    """

    def __init__(
        self,
        path: str | None = None,
        name: str | None = None,
        files: Mapping[str, Any] | None = None,
        csv: Mapping[str, Any] | None = None,
        key: str = "data",
    ) -> None:
        self.key, self.path, self.name = key, path, name
        self.csv = check_options(csv, key)
        if files is None and isinstance(path, str) and Path(path).is_file() and _reader(path):
            files = {"train": str(Path(path).absolute())}
        if files is None and (not isinstance(path, str) or not path):
            raise ConfigError(f"{key}.path={shown(path)}: must be a folder that holds a dataset, or a hub id")
        folder = Path(path) if isinstance(path, str) and Path(path).is_dir() else Path.cwd()
        self.files = None if files is None else find_files(files, folder.absolute(), f"{key}.files")

    def __str__(self) -> str:
        if self.files is None:
            return f"{self.key}.path={self.path}"
        return f"{self.key}.files={{{', '.join(f'{split}: {self._named(split)}' for split in self.files)}}}"

    def read(self, split: str, texts: Sequence[str], label: str | None = None) -> Part:
        """Reads the rows of a split that have a value in all text columns and in the label column, if one is given.

        Raises:
            ConfigError: the dataset cannot be read, has no such split or column, or no rows; a text column holds
                something else.
        """
        rows, builder = self._load(split, [*texts, *([label] if label else [])])
        if not len(rows):
            raise ConfigError(f"{self}: {split} holds no rows")
        for column in texts:
            if getattr(rows.features[column], "dtype", None) == "large_string":  # some writers' name for strings
                rows = rows.cast_column(column, Value("string"))
            if "string" not in (kind := kind_of(rows, column)):
                raise ConfigError(f"{self}: column {column} holds {kind}; must be string")
        part = Part(rows, f"{split} of {self._named(split)}")
        if builder.name == "csv":
            part.notes = quote_notes(rows, texts, vars(builder.config))
            part.rows = self._typed(rows, label) if label else rows
        part.keep_present(texts, "without text")
        part.keep_present([label] if label else [], "without label")
        return part

    def _load(self, split: str, columns: Sequence[str]) -> tuple[Dataset, DatasetBuilder]:
        with self._blamed(split):
            builder = self._builder(split, columns)
            builder.download_and_prepare()
            self._check_split(split, builder.info.splits or {})
            rows = builder.as_dataset(split=split)
        self._check_columns(split, rows.column_names, columns)
        return rows, builder

    def _builder(self, split: str, columns: Sequence[str]) -> DatasetBuilder:
        """Returns the builder of one split alone or, for a dataset on the hub, of all splits."""
        if self.files is not None:
            self._check_split(split, self.files)
            files = self.files[split]
            kind = str(_reader(files[0]))
            csv = self._csv(split, files, columns) if kind == "csv" else self._no_csv()
            return load_dataset_builder(kind, data_files={split: [escape(file) for file in files]}, **csv)
        found, info = self._dataset.config.data_files, self._dataset.info
        more: dict[str, Any] = {}
        if found is not None and Path(str(self.path)).is_dir():
            self._check_split(split, found)
            more = {"data_files": {split: [escape(file) for file in found[split]]}, "features": info.features}
        if self._dataset.name == "csv":
            more |= self._csv(split, found.get(split, ()), columns if more else ())
        else:
            self._no_csv()
        return load_dataset_builder(str(self.path), self.name, **more) if more else self._dataset

    @cached_property
    def _dataset(self) -> DatasetBuilder:
        """The builder of all splits, which knows the files of each."""
        if any(Path(str(self.path), name).exists() for name in SAVED):
            raise ValueError("it is as save_to_disk writes it, which is for load_from_disk; to_parquet writes files")
        return load_dataset_builder(str(self.path), self.name)  # never runs code of a dataset

    def _csv(self, split: str, files: Sequence[str], columns: Sequence[str]) -> dict[str, Any]:
        """Returns the arguments to read CSV files with; if `columns` are given, only these are read, as text."""
        options = options_of(files, self._dataset.config if self.files is None else None, self.csv)
        if columns:
            self._check_columns(split, header(files[0], options, self.key), columns)
            options |= {"usecols": list(columns), "features": Features({name: Value("string") for name in columns})}
        return options

    def _no_csv(self) -> dict[str, Any]:
        if self.csv:
            raise ConfigError(f"{self.key}.csv.{next(iter(self.csv))}: {self} is no CSV; must be null")
        return {}

    def _typed(self, rows: Dataset, label: str) -> Dataset:
        """Casts the labels of CSV rows to numbers where all are numbers, and to the type that the dataset declares."""
        declared = (self._dataset.info.features or {}).get(label) if self.files is None else None
        rows = as_numbers(rows, label) if kind_of(rows, label) == "string" else rows
        return rows.cast_column(label, declared) if declared else rows

    def _named(self, split: str) -> str:
        return str(self.path) if self.files is None else ", ".join(self.files.get(split, ()))

    def _check_split(self, split: str, known: Iterable[str]) -> None:
        if split not in known:
            name = f"{self.key}.files={{train: a.csv, validation: b.csv}}"
            raise ConfigError(f"{self}: has no split {split}; it has {', '.join(map(str, known))} ({name} names files)")

    def _check_columns(self, split: str, known: Sequence[str], wanted: Iterable[str]) -> None:
        for column in wanted:
            if column not in known:
                hint = f""" ("{self.key}.csv.sep=';'" sets the separator of CSV)""" if len(known) == 1 else ""
                raise ConfigError(f"{self}: {split} has no column {column}; it has {', '.join(known)}{hint}")

    @contextmanager
    def _blamed(self, split: str) -> Iterator[None]:
        """Turns errors of the reader into a `ConfigError` that names the source."""
        place = f"{self.path}, name {self.name}" if self.name else self.path
        key, allowed = f"{self.key}.path", "a folder that holds one, or a hub id within reach"
        if self.files is not None:
            key, place, allowed = f"{self.key}.files.{split}", self._named(split), "files that can be read"
        with reading(key, place, "dataset", allowed):
            try:
                yield
            except UnicodeError as error:
                raise not_utf8(self, error) from error
            except DatasetGenerationError as error:
                cause = error.__cause__ or error  # the cause has the specific message
                if isinstance(cause, UnicodeError):
                    raise not_utf8(self, cause) from error
                raise cause from None


def not_utf8(source: Source, error: UnicodeError) -> ConfigError:
    return ConfigError(f"{source}: holds text that is not UTF-8 ({error}); of CSV, data.csv.encoding can name another")


def further_source(source: Any, optional: Sequence[str], key: str) -> tuple[Source, dict[str, Any]]:
    """Splits a mapping into a `Source` and the remaining settings.

    Args:
        optional: the keys that the mapping may have besides `columns` and a source's own keys.
        key: the setting that holds the mapping.

    Raises:
        ConfigError: a key is missing or unknown.
    """
    keys = set(source) if isinstance(source, Mapping) else set()
    allowed = ("path", "name", "files", "csv", *optional)
    if not ("columns" in keys and keys & {"path", "files"} and keys <= {"columns", *allowed}):
        raise ConfigError(f"{key}: {source}: must have columns and path or files, and may have {', '.join(allowed)}")
    own = {name: source[name] for name in keys & {"path", "name", "files", "csv"}}
    rest = {name: source[name] for name in keys - own.keys()}
    return Source(**own, key=key), rest | {"columns": check_columns(rest["columns"])}


def check_columns(columns: Any) -> list[str]:
    """Checks the given text columns, and returns them."""
    fits = isinstance(columns, Sequence) and not isinstance(columns, str) and 1 <= len(columns) <= 2
    if not fits or not all(isinstance(column, str) for column in columns):
        raise ConfigError(
            f"data.columns={shown(columns)}: must be a list of one text column, or of two that make a pair"
        )
    return list(columns)


def kind_of(dataset: Dataset, column: str) -> str:
    """Returns the dtype of a column, as `string` or `int64`; `NESTED` if it has several values a row."""
    feature = dataset.features[column]
    return feature.dtype if isinstance(feature, Value | ClassLabel) else NESTED


def find_files(files: Any, folder: Path, key: str) -> dict[str, list[str]]:
    """Finds the files of each split; returns their paths.

    Raises:
        ConfigError: not a mapping of splits; a file that does not exist or is of an unknown kind; files of several
            kinds in a split.
    """
    require(
        isinstance(files, Mapping) and bool(files), key, files, "files by split, as {train: a.csv, validation: b.csv}"
    )
    found: dict[str, list[str]] = {}
    for split, given in files.items():
        names = [given] if isinstance(given, str) else given
        fits = isinstance(names, list | tuple) and bool(names) and all(isinstance(name, str) for name in names)
        require(fits, f"{key}.{split}", given, "a file, a pattern, or a list of these")
        found[str(split)] = [file for name in names for file in _matching(folder / name, f"{key}.{split}")]
        if len({_reader(file) for file in found[str(split)]}) > 1:
            raise ConfigError(f"{key}.{split}={shown(given)}: must be files of one kind")
    return found


def _matching(path: Path, key: str) -> list[str]:
    """Returns the file, or the files that a pattern matches, sorted."""
    files = [str(path)] if path.is_file() else sorted(filter(_is_file, glob(str(path), recursive=True)))
    require(bool(files), key, path, "a file that is there, or a pattern of some")
    for file in files:
        require(_reader(file) is not None, key, file, f"a file that ends in {', '.join(READERS)}")
    return files


def _is_file(path: str) -> bool:
    return Path(path).is_file()


def _reader(path: str) -> str | None:
    """Returns the builder of `datasets` that reads a file, compressed or not; None if there is none."""
    name = Path(path).name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return READERS.get(Path(name).suffix)
