"""Writes the files of a report: all of them, or none."""

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from matplotlib.figure import Figure

from kdnas.base.files import make_folder


def write_files(key: str, folder: Path, contents: Mapping[str, pd.DataFrame | str | Figure | None]) -> list[Path]:
    """Writes tables as CSV, texts and plots, by file name, into the folder of the setting `key`; returns the paths.

    All files are made in a temporary folder and then moved, so an error leaves an earlier report as it was. An earlier
    file whose content is None is removed. A ConfigError says that the folder cannot be made.
    """
    make_folder(key, folder)
    with TemporaryDirectory(dir=folder, prefix=".") as temporary:
        for name, content in contents.items():
            _write(Path(temporary) / name, content)
        written = [name for name, content in contents.items() if content is not None]
        for name in written:
            os.replace(Path(temporary) / name, folder / name)
    for name in contents.keys() - set(written):
        (folder / name).unlink(missing_ok=True)
    return [folder / name for name in written]


def _write(path: Path, content: pd.DataFrame | str | Figure | None) -> None:
    if isinstance(content, pd.DataFrame):
        content.to_csv(path, index=False)
    elif isinstance(content, Figure):
        content.savefig(path, format="png", dpi=content.dpi)
    elif content is not None:
        path.write_text(content, encoding="utf-8")
