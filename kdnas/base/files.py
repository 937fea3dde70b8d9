"""Atomic writes, checks of the folders that users name, and digests of weights."""

import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from kdnas.base.disk import disk_error
from kdnas.base.errors import ConfigError, reason, shown


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Writes a file atomically: yields a new path beside `path`, which replaces `path` when the block ends.

    The new file is removed if the block raises. Several processes may write the same file at once.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes plain values to a file, atomically."""
    with whole(path) as aside:
        aside.write_text(json.dumps(value, indent=1) + "\n")


def check_folder(key: str, folder: Any) -> Path:
    """Checks, without writing, that a folder can be written to or made; returns its path."""
    if not isinstance(folder, str | Path) or not str(folder).strip() or "\0" in str(folder):
        raise ConfigError.of(key, f"={shown(folder)}: must be a folder to write to")
    path = Path(folder)
    try:
        there = next(part for part in (path, *path.absolute().parents) if part.exists())
        reason = "" if os.access(there, os.W_OK) else f"no permission for {there}"
        reason = reason if there.is_dir() else f"{there} is a file"
    except OSError as error:
        reason = str(error.strerror)
    if reason:
        raise ConfigError.of(key, f"={folder}: cannot be written to ({reason})")
    return path


def make_folder(key: str, folder: Path) -> None:
    """Makes a folder and its parents; `key` is the setting that the error message names."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError.of(key, f"={folder}: cannot be written to ({error.strerror})") from error


def available_memory() -> float:
    """Returns the bytes of memory that this process could take; infinite where the system does not tell."""
    limits = [math.inf]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits.append(1024.0 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with suppress(OSError, ValueError):  # the limit of a container or job
        group = Path("/sys/fs/cgroup")
        limits.append(float((group / "memory.max").read_text()) - float((group / "memory.current").read_text()))
    return min(limits)


def fingerprint(model: Path) -> str | None:
    """Returns a digest of the weights in a checkpoint or a folder; None if there are none on disk."""
    files = [model] if model.is_file() else sorted(model.glob("*.safetensors")) + sorted(model.glob("*.bin"))
    digest = hashlib.sha256()
    for path in files:
        status = path.stat()
        digest.update(_digest(path, status.st_mtime_ns, status.st_size))
    return digest.hexdigest()[:16] if files else None


@lru_cache(maxsize=64)
def _digest(path: Path, *version: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@contextmanager
def reading(
    key: str, path: object, what: str = "model", allowed: str = "a folder that holds one, or a hub id within reach"
) -> Iterator[None]:
    """Turns any error of reading a file into a `ConfigError` about a setting `key`: broken files can raise anything.

    `what` is the kind of content, and `allowed` what the setting may be, for the message.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        if met := disk_error(error):  # as a hub cache on a full disk
            raise met from error
        # Torch's message about code in weights says how to run it.
        cause = "damaged, or holding code" if isinstance(error, UnpicklingError) else reason(error)
        raise ConfigError(f"{key}={path}: no {what} there that can be read; must be {allowed} ({cause})") from error
