"""Exports models as Hugging Face folders: atomically, and never over files that kdnas did not write."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from kdnas.base.disk import writing
from kdnas.base.errors import ConfigError
from kdnas.base.files import fingerprint
from kdnas.models.cards import card

MARK = "kdnas.json"
"""The file that marks a folder as an export of kdnas: it holds a digest of every file that kdnas wrote there."""
README = "README.md"
KEPT = (README, "LICENSE", "LICENSE.md", ".gitattributes", ".gitignore")
"""Files about a model that a user may add to an export or edit; a new export in its place keeps them."""


def check_export(folder: Path, several: bool = False) -> None:
    """Refuses a folder that holds anything but an earlier export that has not been changed since.

    Args:
        folder: the folder of the export, or of the numbered exports of several students.
        several: whether several students will be exported.

    Raises:
        ConfigError: the folder is a file, or holds anything else.
    """
    paths = list(folder.iterdir()) if folder.is_dir() else []
    numbered = bool(paths) and all(path.is_dir() and path.name.isdecimal() for path in paths)
    reason = "is a file" if folder.exists() and not folder.is_dir() else ""
    if numbered:
        reason = next(filter(None, (_foreign(path, KEPT if several else ()) for path in paths)), "")
    elif paths:
        reason = "holds the export of one student" if several else _foreign(folder, KEPT)
    if reason:
        raise ConfigError(f"paths.export={folder}: {reason}; must be empty, not there, or an export as kdnas left it")


def _foreign(folder: Path, kept: Collection[str]) -> str:
    """Returns why a folder must not be replaced; empty if it is an export that only `kept` files differ in."""
    written = _written(folder)
    if written is None:
        return "holds something that is not a model from kdnas"
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir()):
        name = path.relative_to(folder).as_posix()
        if name != MARK and name not in kept and written.get(name) != fingerprint(path):
            return f"holds {name}, which kdnas did not write"
    return ""


def _written(folder: Path) -> dict[str, str] | None:
    """Returns the digests of the files that kdnas wrote into a folder; None if it is no export of kdnas."""
    try:
        files = json.loads((folder / MARK).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return files if isinstance(files, dict) else None


def export(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    folder: Path,
    about: Mapping[str, str] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Path:
    """Writes a folder that transformers' `from_pretrained` loads: model, tokenizer and model card; atomically.

    Args:
        about, metrics: how the model was made and its held-out metrics, for the model card (`kdnas.models.cards`).
    """
    check_export(folder)
    folder = folder.resolve()  # the target, if it is a link
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (folder.with_name(f".{folder.name}-{secrets.token_hex(4)}") for _ in range(2))
    fresh.mkdir()
    try:
        with writing(fresh, size=sum(weight.nbytes for weight in model.state_dict().values())):
            model.save_pretrained(fresh)
            tokenizer.save_pretrained(fresh)
        (fresh / README).write_text(card(model, folder.name, about or {}, metrics or {}), encoding="utf-8")
        _mark(fresh)
        _share(fresh)
        if folder.exists():
            _keep(folder, fresh)
            os.rename(folder, old)
        os.rename(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _mark(folder: Path) -> None:
    """Writes `MARK`: digests of all files of a folder."""
    files = {path.relative_to(folder).as_posix(): fingerprint(path) for path in folder.rglob("*") if path.is_file()}
    (folder / MARK).write_text(json.dumps({"files": files}, indent=1, sort_keys=True) + "\n")


def _share(folder: Path) -> None:
    """Gives all files the mode of the model card, which follows the umask; safetensors makes private files."""
    mode = (folder / README).stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _keep(old: Path, fresh: Path) -> None:
    """Copies the files that a user has written or edited (see `KEPT`) from the old export to the new one."""
    written = _written(old) or {}
    for name in KEPT:
        if (old / name).is_file() and written.get(name) != fingerprint(old / name):
            shutil.copy2(old / name, fresh / name)
