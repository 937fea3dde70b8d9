"""Files that appear whole or not at all, and the folders that users give for them."""

from __future__ import annotations

import hashlib
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from kdnas.errors import ConfigError, shown


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives a new path beside `path` to write to. It takes the place of `path` when the block ends, or is removed if
    the block raises; several processes may write the same file at once."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def check_folder(key: str, folder: Any) -> Path:
    """A folder as a user gives it, there or not: one that can be written to, as far as can be said without writing.

    Raises:
        ConfigError: no path, something else than a folder on the way, or no permission.
    """
    if not isinstance(folder, str | Path) or not str(folder).strip() or "\0" in str(folder):
        raise ConfigError(f"{key}={shown(folder)}: must be a folder to write to")
    path = Path(folder)
    try:
        there = next(part for part in (path, *path.absolute().parents) if part.exists())
        reason = "" if os.access(there, os.W_OK) else f"no permission for {there}"
        reason = reason if there.is_dir() else f"{there} is a file"
    except OSError as error:
        reason = str(error.strerror)
    if reason:
        raise ConfigError(f"{key}={folder}: cannot be written to ({reason})")
    return path


def make_folder(key: str, folder: Path) -> None:
    """Makes a folder with all that leads to it; `key` is the setting to blame."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{key}={folder}: cannot be written to ({error.strerror})") from error


def available_memory() -> float:
    """Bytes that this process could take; infinitely many where the system does not say."""
    limits = [math.inf]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits.append(1024.0 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with suppress(OSError, ValueError):  # of a container, or of a job
        group = Path("/sys/fs/cgroup")
        limits.append(float((group / "memory.max").read_text()) - float((group / "memory.current").read_text()))
    return min(limits)


def fingerprint(model: Path) -> str | None:
    """A digest of the weights in a checkpoint or a folder; None of what is not on disk."""
    files = [model] if model.is_file() else sorted(model.glob("*.safetensors")) + sorted(model.glob("*.bin"))
    digest = hashlib.sha256()
    for path in files:
        status = path.stat()
        digest.update(_digest(path, status.st_mtime_ns, status.st_size))
    return digest.hexdigest()[:16] if files else None


@lru_cache(maxsize=64)
def _digest(path: Path, *version: int) -> bytes:
    """Of one file, read once for each of its versions."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
