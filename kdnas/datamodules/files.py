"""The files of a dataset's splits, and how CSV files are read: every cell is text, so that 007 keeps its zeros."""

import csv
from collections.abc import Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from datasets import BuilderConfig, Dataset, Value

from kdnas.base.errors import ConfigError, require, shown

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
USUAL: dict[str, Any] = {"keep_default_na": False, "na_values": [""], "skip_blank_lines": False}
"""Options of pandas that lose no row silently: an empty cell is missing, and "NA", "None" or "null" is a text."""
TABS: dict[str, Any] = {"sep": "\t", "quoting": csv.QUOTE_NONE}
"""Options for .tsv files: a quote is a character, as in GLUE's files. A stray one would join rows up to the next."""
QUOTE = '"'


def find_files(files: Any, folder: Path, key: str) -> dict[str, list[str]]:
    """Finds the files of each split, by a path, a pattern or a list of these relative to `folder`; returns their paths.

    A ConfigError refuses files of the setting `key` that do not exist, or are of an unknown kind or several kinds.
    """
    fits = isinstance(files, Mapping) and bool(files)
    require(fits, key, files, "files by split, as {train: a.csv, validation: b.csv}")
    found: dict[str, list[str]] = {}
    for split, value in files.items():
        names = [value] if isinstance(value, str) else value
        fits = isinstance(names, list | tuple) and bool(names) and all(isinstance(name, str) for name in names)
        require(fits, f"{key}.{split}", value, "a file, a pattern, or a list of these")
        found[str(split)] = [file for name in names for file in _matching(folder / name, f"{key}.{split}")]
        require(len({reader_of(file) for file in found[str(split)]}) == 1, f"{key}.{split}", value, "files of one kind")
    return found


def _matching(path: Path, key: str) -> list[str]:
    matches = [path] if path.is_file() else [Path(name) for name in sorted(glob(str(path), recursive=True))]
    files = [str(match) for match in matches if match.is_file()]
    require(bool(files), key, path, "a file that is there, or a pattern of some")
    for file in files:
        require(reader_of(file) is not None, key, file, f"a file that ends in {', '.join(READERS)}")
    return files


def reader_of(path: str) -> str | None:
    """Returns the builder of `datasets` that reads a file, compressed or not; None if there is none."""
    name = Path(path).name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return READERS.get(Path(name).suffix)


def check_options(options: Any, key: str) -> dict[str, Any]:
    """Checks options of `pandas.read_csv`, in the setting `key`, and returns those that are not null."""
    fits = options is None or isinstance(options, Mapping)
    require(fits, key, options, "options of pandas.read_csv by name")
    chosen = {str(name): value for name, value in (options or {}).items() if value is not None}
    if chosen.get("sep") == r"\t":  # as users type it
        chosen["sep"] = "\t"
    if "na_values" in chosen:
        markers = chosen["na_values"] if isinstance(chosen["na_values"], list | tuple) else [chosen["na_values"]]
        chosen["na_values"] = ["", *map(str, markers)]
    return chosen


def options_of(files: Sequence[str], declared: BuilderConfig | None, chosen: dict[str, Any]) -> dict[str, Any]:
    """Returns the options to read files with: `chosen` ones come before a dataset card's, these before the usual."""
    tabs = TABS if files and all(".tsv" in file.lower().rpartition("/")[2] for file in files) else {}
    return USUAL | tabs | _differing(declared) | chosen


def _differing(config: BuilderConfig | None) -> dict[str, Any]:
    if config is None:
        return {}
    usual = vars(type(config)())
    general = {*vars(BuilderConfig()), "features", "column_names", "delimiter"}  # the last two are aliases
    return {name: value for name, value in vars(config).items() if name not in general and value != usual[name]}


def header(file: str, options: Mapping[str, Any], key: str) -> list[str]:
    """Reads the column names of a file; a `ConfigError` refuses options that `pandas.read_csv` does not take."""
    try:
        plain = {name: value for name, value in options.items() if name != "chunksize"}
        return [str(name) for name in pd.read_csv(file, nrows=0, **plain).columns]
    except (TypeError, ValueError) as error:
        if isinstance(error, UnicodeError | pd.errors.ParserError | pd.errors.EmptyDataError):
            raise
        raise ConfigError.of(key, f": {' '.join(str(error).split())} (options of pandas.read_csv)") from error


def as_numbers(rows: Dataset, column: str) -> Dataset:
    """Casts a text column to int64 if all of its values are integers, else to float64 if all are numbers."""
    values = pa.array(filter(None, rows.unique(column)), pa.string())
    for kind in ("int64", "float64"):
        try:
            pc.cast(values, kind)
        except pa.ArrowInvalid:
            continue
        return rows.cast_column(column, Value(kind))
    return rows


def quote_notes(rows: Dataset, columns: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    """Returns warnings about texts that the handling of quotes may have spoilt, with the option that changes it."""
    plain = options.get("quoting") == csv.QUOTE_NONE
    quote = options.get("quotechar") or QUOTE
    odd = 0
    for column in columns:
        text = rows.data.column(column)
        found = pc.starts_with(text, quote) if plain else pc.match_substring(text, "\n")
        odd += pc.sum(found).as_py() or 0
    if not odd:
        return []
    if plain:
        return [f"{odd} texts begin with a quote, which is kept (data.csv.quoting=0 takes quotes off)"]
    return [f"{odd} texts hold line ends: if a stray {shown(quote)} swallowed rows, data.csv.quoting=3 keeps them"]
