"""Reads rows from a dataset on the hub, a local folder of the same layout, or files."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from glob import escape
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetBuilder, Features, Value, load_dataset_builder
from datasets.exceptions import DatasetGenerationError

from kdnas.base.errors import ConfigError, require
from kdnas.base.files import reading
from kdnas.datamodules.examples import Examples
from kdnas.datamodules.files import as_numbers, check_options, find_files, header, options_of, quote_notes, reader_of
from kdnas.tasks.labels import content

SAVED = ("state.json", "dataset_dict.json")
"""Files that a folder has if `save_to_disk` wrote it."""


class Source:
    """A dataset whose splits are read one by one, so that a broken split that is not used does no harm.

    Args:
        path: a hub id, a folder, or a file (its rows are the split `train`).
        name: the name of the dataset's config.
        files: in place of both, files by split: for each a path, a pattern, or a list of these, relative to `path` if
            it is a folder.
        csv: options of `pandas.read_csv`; null ones take the defaults of `kdnas.datamodules.files`.
        prefix: where these arguments are among the settings of the data, as `extra.0.`.

    Raises:
        ConfigError: the arguments name no dataset, or a file does not exist.
    """

    def __init__(
        self,
        path: str | None = None,
        name: str | None = None,
        files: Mapping[str, Any] | None = None,
        csv: Mapping[str, Any] | None = None,
        prefix: str = "",
    ) -> None:
        self.prefix, self.path, self.name = prefix, path, name
        self.csv = check_options(csv, f"{prefix}csv")
        if files is None and isinstance(path, str) and Path(path).is_file() and reader_of(path):
            files = {"train": str(Path(path).absolute())}
        named = files is not None or (isinstance(path, str) and bool(path))
        require(named, f"{prefix}path", path, "a folder that holds a dataset, or a hub id")
        folder = Path(path) if isinstance(path, str) and Path(path).is_dir() else Path.cwd()
        self.files = None if files is None else find_files(files, folder.absolute(), f"{prefix}files")

    def error(self, message: str) -> ConfigError:
        """Makes an error that begins with the setting of the dataset, and its value."""
        if self.files is None:
            return ConfigError.of(f"{self.prefix}path", f"={self.path}: {message}")
        files = ", ".join(f"{split}: {self._place(split)}" for split in self.files)
        return ConfigError.of(f"{self.prefix}files", f"={{{files}}}: {message}")

    def not_utf8(self, error: UnicodeError) -> ConfigError:
        return self.error(f"holds text that is not UTF-8 ({error}); of CSV, data.csv.encoding can name another")

    def read(self, split: str, texts: Sequence[str], label: str | None = None) -> Examples:
        """Reads the rows of a split that have a value in all text columns and in the label column, if one is given.

        Raises:
            ConfigError: the dataset cannot be read, has no such split or column, or no rows; a text column holds
                something else.
        """
        rows, builder = self._load(split, [*texts, *([label] if label else [])])
        if not len(rows):
            raise self.error(f"{split} holds no rows")
        for column in texts:
            if getattr(rows.features[column], "dtype", None) == "large_string":  # some writers' name for strings
                rows = rows.cast_column(column, Value("string"))
            if "string" not in (kind := content(rows, column)):
                raise self.error(f"column {column} holds {kind}; must be string")
        examples = Examples(rows, f"{split} of {self._place(split)}")
        if builder.name == "csv":
            examples.notes = quote_notes(rows, texts, vars(builder.config))
            examples.rows = self._typed(rows, label) if label else rows
        examples.keep_present(texts, "without text")
        examples.keep_present([label] if label else [], "without label")
        return examples

    def _load(self, split: str, columns: Sequence[str]) -> tuple[Dataset, DatasetBuilder]:
        with self._blamed(split):
            builder = self._builder(split, columns)
            builder.download_and_prepare()
            self._check_split(split, builder.info.splits or {})
            rows = builder.as_dataset(split=split)
        self._check_columns(split, rows.column_names, columns)
        return rows, builder

    def _builder(self, split: str, columns: Sequence[str]) -> DatasetBuilder:
        if self.files is not None:
            self._check_split(split, self.files)
            files = self.files[split]
            kind = str(reader_of(files[0]))
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
        if any(Path(str(self.path), name).exists() for name in SAVED):
            raise ValueError("it is as save_to_disk writes it, which is for load_from_disk; to_parquet writes files")
        return load_dataset_builder(str(self.path), self.name)  # never runs code of a dataset

    def _csv(self, split: str, files: Sequence[str], columns: Sequence[str]) -> dict[str, Any]:
        options = options_of(files, self._dataset.config if self.files is None else None, self.csv)
        if columns:
            self._check_columns(split, header(files[0], options, f"{self.prefix}csv"), columns)
            options |= {"usecols": list(columns), "features": Features({name: Value("string") for name in columns})}
        return options

    def _no_csv(self) -> dict[str, Any]:
        if self.csv:
            place = self.path if self.files is None else ", ".join(map(self._place, self.files))
            raise ConfigError.of(f"{self.prefix}csv.{next(iter(self.csv))}", f": {place} is no CSV; must be null")
        return {}

    def _typed(self, rows: Dataset, label: str) -> Dataset:
        declared = (self._dataset.info.features or {}).get(label) if self.files is None else None
        rows = as_numbers(rows, label) if content(rows, label) == "string" else rows
        return rows.cast_column(label, declared) if declared else rows

    def _place(self, split: str) -> str:
        return str(self.path) if self.files is None else ", ".join(self.files.get(split, ()))

    def _check_split(self, split: str, known: Iterable[str]) -> None:
        if split not in known:
            hint = f"data.{self.prefix}files={{train: a.csv, validation: b.csv}} names files"
            raise self.error(f"has no split {split}; it has {', '.join(map(str, known))} ({hint})")

    def _check_columns(self, split: str, known: Sequence[str], wanted: Iterable[str]) -> None:
        for column in wanted:
            if column not in known:
                hint = f""" ("data.{self.prefix}csv.sep=';'" sets the separator of CSV)""" if len(known) == 1 else ""
                raise self.error(f"{split} has no column {column}; it has {', '.join(known)}{hint}")

    @contextmanager
    def _blamed(self, split: str) -> Iterator[None]:
        place = f"{self.path}, name {self.name}" if self.name else self.path
        key, allowed = f"{self.prefix}path", "a folder that holds one, or a hub id within reach"
        if self.files is not None:
            key, place, allowed = f"{self.prefix}files.{split}", self._place(split), "files that can be read"
        try:
            with reading(key, place, "dataset", allowed):
                try:
                    yield
                except UnicodeError as error:
                    raise self.not_utf8(error) from error
                except DatasetGenerationError as error:
                    cause = error.__cause__ or error  # the cause has the specific message
                    if isinstance(cause, UnicodeError):
                        raise self.not_utf8(cause) from error
                    raise cause from None
        except ConfigError as error:  # `reading` takes complete keys
            own = error.key is None and str(error).startswith(f"{key}=")
            raise ConfigError.of(key, str(error).removeprefix(key)) if own else error from error.__cause__


def further_source(source: Any, optional: Sequence[str], key: str) -> tuple[Source, dict[str, Any]]:
    """Splits a mapping, the setting `key` (as `extra.0`), into a `Source` and the remaining settings.

    A `ConfigError` refuses missing and unknown keys; `optional` ones may stand beside `columns` and a source's own.
    """
    keys = set(source) if isinstance(source, Mapping) else set()
    allowed = ("path", "name", "files", "csv", *optional)
    if not ("columns" in keys and keys & {"path", "files"} and keys <= {"columns", *allowed}):
        raise ConfigError.of(key, f": {source}: must have columns and path or files, and may have {', '.join(allowed)}")
    own = {name: source[name] for name in keys & {"path", "name", "files", "csv"}}
    rest = {name: source[name] for name in keys - own.keys()}
    return Source(**own, prefix=f"{key}."), rest | {"columns": check_columns(rest["columns"], f"{key}.columns")}


def check_columns(columns: Any, key: str = "columns") -> list[str]:
    fits = isinstance(columns, Sequence) and not isinstance(columns, str) and 1 <= len(columns) <= 2
    fits = fits and all(isinstance(column, str) for column in columns)
    require(fits, key, columns, "a list of one text column, or of two that make a pair")
    return list(columns)
