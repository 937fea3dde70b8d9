"""Options for reading CSV and TSV files: every cell is text, so that "NA" is a text and 007 keeps its zeros."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from datasets import BuilderConfig, Dataset, Value

from kdnas.base.errors import ConfigError, require, shown

USUAL: dict[str, Any] = {"keep_default_na": False, "na_values": [""], "skip_blank_lines": False}
"""Options of pandas that lose no row silently: an empty cell is missing, and "NA", "None" or "null" is a text."""
TABS: dict[str, Any] = {"sep": "\t", "quoting": csv.QUOTE_NONE}
"""Options for .tsv files: a quote is a character, as in GLUE's files. A stray one would join rows up to the next."""
QUOTE = '"'


def check_options(options: Any, key: str) -> dict[str, Any]:
    """Checks the given options of `pandas.read_csv`, in the setting `key`, and returns those that are not null."""
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
    """Returns the options to read files with: the user's before the dataset card's, these before the usual ones.

    Args:
        files: paths or URLs.
        declared: the config in a dataset's card, if there is one.
        chosen: the user's options.
    """
    tabs = TABS if files and all(".tsv" in file.lower().rpartition("/")[2] for file in files) else {}
    return USUAL | tabs | _differing(declared) | chosen


def _differing(config: BuilderConfig | None) -> dict[str, Any]:
    """Returns the options of a builder config that differ from its defaults."""
    if config is None:
        return {}
    usual = vars(type(config)())
    general = {*vars(BuilderConfig()), "features", "column_names", "delimiter"}  # the last two are aliases
    return {name: value for name, value in vars(config).items() if name not in general and value != usual[name]}


def header(file: str, options: Mapping[str, Any], key: str) -> list[str]:
    """Reads the column names of a file.

    Raises:
        ConfigError: options that `pandas.read_csv` does not take.
    """
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
