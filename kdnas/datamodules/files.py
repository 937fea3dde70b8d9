"""Finds the files of a dataset's splits, and the reader of each by its ending."""

from __future__ import annotations

from collections.abc import Mapping
from glob import glob
from pathlib import Path
from typing import Any

from kdnas.base.errors import require

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


def find_files(files: Any, folder: Path, key: str) -> dict[str, list[str]]:
    """Finds the files of each split; returns their paths.

    Args:
        files: for each split a path, a pattern, or a list of these.
        folder: the folder that relative paths start from.
        key: the setting that holds `files`.

    Raises:
        ConfigError: not a mapping of splits; a file that does not exist or is of an unknown kind; files of several
            kinds in a split.
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
    """Returns the file, or the files that a pattern matches, sorted."""
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
