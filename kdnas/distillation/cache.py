"""The teacher cache: outputs computed once and kept in memory, or on disk for other processes and later searches."""

import hashlib
import logging
import math
import os
import shutil
from abc import abstractmethod
from collections.abc import Collection
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchEncoding

from kdnas.base.errors import ConfigError, is_number, require
from kdnas.base.files import available_memory, check_folder, make_folder, whole
from kdnas.base.locks import alone, free
from kdnas.base.screen import activity
from kdnas.base.shared import forget, shared
from kdnas.distillation.teacher import CACHE_DTYPE, Corpus, OnlineTeacher, Teacher, TeacherOutputs
from kdnas.models.features import Feature, Features, Kind, Per

log = logging.getLogger(__name__)
GB = 10**9
LOCK = ".lock"
FORMAT = 2
"""The version of the cache's format, to be raised when the cached values of a teacher and rows change."""


@dataclass(frozen=True)
class Part:
    """The shape and dtype of a cached feature, (items, width): an item is a token or a row of the corpus."""

    feature: Feature
    items: int
    width: int
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return self.items * self.width * self.dtype.itemsize


def parts_of(features: Collection[Feature], teacher: Teacher, corpus: Corpus) -> list[Part]:
    return [
        Part(
            feature,
            corpus.tokens if feature.per is Per.TOKEN else corpus.rows,
            feature.width(teacher.config),
            torch.float32 if feature.kind is Kind.LOGITS else CACHE_DTYPE,
        )
        for feature in sorted(features)
    ]


class NoRoomError(Exception):
    """There is too little room for the cache; the message says why."""


class CachedOutputs(TeacherOutputs):
    """Teacher outputs from a cache. They are of unmasked text: masks change with every epoch.

    Features are bf16, logits fp32; (tokens, width) without padding, or (rows, width).

    Args:
        limit: the most GB to take.
        otherwise: the form to use if this cache does not fit; None runs the teacher on every batch.
    """

    name: str

    def __init__(self, limit: float, otherwise: TeacherOutputs | None = None) -> None:
        require(is_number(limit) and limit > 0, "limit", limit, "above 0, in GB")
        self.limit, self.otherwise = limit, otherwise or OnlineTeacher()
        self.cached: Features = {}

    def check(self, masked: bool) -> None:
        if masked:
            raise ConfigError(
                f"outputs={self.name}: caches the teacher's outputs for a text, which data.masking changes with every "
                "epoch; must be online"
            )

    def open(
        self, teacher: Teacher, corpus: Corpus | None, features: Collection[Feature], device: torch.device
    ) -> TeacherOutputs:
        self.check(masked=corpus is None)
        assert corpus is not None
        wanted = parts_of(features, teacher, corpus)
        key = hashlib.sha256(f"{FORMAT} {teacher.identity} {corpus.digest}".encode()).hexdigest()[:16]
        try:
            self.cached = self.keep(key, wanted, teacher, corpus, device)
        except NoRoomError as reason:
            size = sum(part.bytes for part in wanted) / GB
            rows = f", which holds {int(self.limit / size * corpus.rows)} of {corpus.rows} rows"
            enough = rows if size > self.limit else ""
            log.warning("the teacher's outputs would take %.3g GB %s: %s%s", size, self.where, reason, enough)
            if isinstance(self.otherwise, OnlineTeacher):
                log.warning("so the teacher runs on every batch")
            return self.otherwise.open(teacher, corpus, features, device)
        self.device = device
        return self

    @property
    @abstractmethod
    def where(self) -> str:
        """The place of the cache, for messages."""

    @abstractmethod
    def keep(self, key: str, wanted: list[Part], teacher: Teacher, corpus: Corpus, device: torch.device) -> Features:
        """Returns the wanted tensors, (items, width) each; computes the missing ones.

        Raises:
            NoRoomError: they do not fit.
        """

    def within(self, size: int, free: float, what: str) -> None:
        """Refuses a size above the limit, or above half of the free space; `what` names the device for the message."""
        if size > self.limit * GB:
            raise NoRoomError(f"more than outputs.limit={self.limit:.3g}")
        if size > free / 2:
            raise NoRoomError(f"more than half of the {free / GB:.3g} GB that {what} has left")

    def __call__(self, batch: BatchEncoding, features: Collection[Feature]) -> Features:
        return {feature: self._take(feature, batch) for feature in features}

    def _take(self, feature: Feature, batch: BatchEncoding) -> Tensor:
        cached = self.cached[feature]
        items = torch.from_numpy(items_of(feature, batch))
        found = cached.index_select(0, items.to(cached.device, non_blocking=True))
        if found.device == self.device:
            return found
        return (found.pin_memory() if self.device.type == "cuda" else found).to(self.device, non_blocking=True)


class MemoryOutputs(CachedOutputs):
    """A cache in memory: the accelerator's if it takes less than half of its free memory, else the host's."""

    name = "memory"
    where = "in memory"

    def keep(self, key: str, wanted: list[Part], teacher: Teacher, corpus: Corpus, device: torch.device) -> Features:
        def make() -> Features:
            size = sum(part.bytes for part in wanted)
            roomy = device.type == "cuda" and size < torch.cuda.mem_get_info(device)[0] / 2
            place = device if roomy else torch.device("cpu")
            self.within(size, math.inf if roomy else available_memory(), "the memory")
            log.info("keeping %.3g GB of the teacher's outputs %s", size / GB, self.where)
            kept = {p.feature: torch.empty(p.items, p.width, dtype=p.dtype, device=place) for p in wanted}
            fill(kept, teacher, corpus, device)
            return kept

        return shared("outputs", (key, tuple(wanted), str(device)), make)


class DiskOutputs(CachedOutputs):
    """A cache in memory-mapped files, one a layer: all processes share the page cache.

    The first process computes what is missing, while the others wait. The least recently used folders are removed to
    make room.

    Args:
        folder: has a folder for each teacher, rows and precision. These can be removed whenever nothing runs.
        limit: the most GB that all of them may take together.
    """

    name = "disk"

    def __init__(self, folder: str, limit: float, otherwise: TeacherOutputs | None = None) -> None:
        super().__init__(limit, otherwise)
        self.folder = check_folder("folder", folder)

    @property
    def where(self) -> str:
        return f"in {self.folder}"

    def keep(self, key: str, wanted: list[Part], teacher: Teacher, corpus: Corpus, device: torch.device) -> Features:
        folder = self.folder / key
        with suppress(OSError):  # it does not exist yet, or belongs to another user
            os.utime(folder)  # marks it as used, first of all, so that no other process removes it
        if any(not self._is_whole(folder, part) for part in wanted):
            self.within(sum(part.bytes for part in wanted), math.inf, "")
            make_folder("outputs.folder", folder)
            with alone(folder / LOCK, "the teacher's outputs"):
                missing = [part for part in wanted if not self._is_whole(folder, part)]
                if missing:
                    self._write(folder, missing, teacher, corpus, device)
        return {part.feature: _mapped(folder / part.feature.name, part) for part in wanted}

    @staticmethod
    def _is_whole(folder: Path, part: Part) -> bool:
        path = folder / part.feature.name
        return path.is_file() and path.stat().st_size == part.bytes

    def _write(self, folder: Path, parts: list[Part], teacher: Teacher, corpus: Corpus, device: torch.device) -> None:
        size = sum(part.bytes for part in parts)
        for left in folder.glob(".*"):  # left by a process that died while writing
            if left.name != LOCK:
                left.unlink()
        self._make_room(folder, size)
        with ExitStack() as stack:
            files = {part: stack.enter_context(whole(folder / part.feature.name)) for part in parts}
            try:
                for part, path in files.items():
                    _reserve(path, part.bytes)
            except OSError as error:
                raise NoRoomError(f"it cannot be written to ({error.strerror})") from error
            log.info("keeping %.3g GB of the teacher's outputs in %s", size / GB, folder)
            mapped = {part.feature: _mapped(path, part, shared=True) for part, path in files.items()}
            fill(mapped, teacher, corpus, device)
            # A file must be complete once it has its name, on other nodes and after a crash.
            for path in files.values():
                with path.open("rb") as file:
                    os.fsync(file.fileno())

    def _make_room(self, folder: Path, size: int) -> None:
        others = [path for path in self.folder.iterdir() if path.is_dir() and path != folder]
        taken = {path: _bytes(path) for path in sorted(others, key=lambda path: path.stat().st_mtime)}
        taken[folder] = _bytes(folder)
        for path in list(taken)[:-1]:
            if sum(taken.values()) + size <= self.limit * GB:
                break
            with suppress(OSError), (path / LOCK).open("a") as lock:
                if free(lock):  # no process writes there
                    log.info("removing %s: outputs.limit=%.3g", path, self.limit)
                    shutil.rmtree(path, ignore_errors=True)
                    del taken[path]
        self.within(sum(taken.values()) + size, math.inf, "")
        self.within(size, shutil.disk_usage(self.folder).free, "the disk")


def items_of(feature: Feature, batch: BatchEncoding) -> np.ndarray:
    """Returns the places of a feature's items in the cache."""
    return batch["tokens" if feature.per is Per.TOKEN else "rows"]


def fill(cached: Features, teacher: Teacher, corpus: Corpus, device: torch.device) -> None:
    """Runs the teacher over all rows and writes its features into the given tensors."""
    online = OnlineTeacher().open(teacher, corpus, cached, device)
    with activity("asking the teacher", total=corpus.tokens) as shown:
        for batch in corpus.batches():
            batch = batch.to(device)
            for feature, values in online(batch, cached).items():
                _put(cached[feature], items_of(feature, batch), values, teacher)
            shown.advance(len(batch["tokens"]))
    forget("teacher")  # frees its memory: all outputs are cached


def _put(kept: Tensor, items: Any, values: Tensor, teacher: Teacher) -> None:
    if not values.isfinite().all():
        raise ConfigError(
            f"teacher.path={teacher.path}: its outputs are NaN or infinite in trainer.precision={teacher.precision}; "
            "must be a teacher, and a precision, that give finite ones"
        )
    kept[torch.from_numpy(items).to(kept.device)] = values.to(kept.device, kept.dtype)


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.glob("*"):
        with suppress(OSError):
            total += path.stat().st_size
    return total


def _reserve(path: Path, size: int) -> None:
    """Allocates a file, so that a full disk raises an error now and does not crash the process later (SIGBUS)."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, max(size, 1))
        else:
            file.truncate(size)


def _mapped(path: Path, part: Part, shared: bool = False) -> Tensor:
    flat = torch.from_file(str(path), shared=shared, size=part.items * part.width, dtype=part.dtype)
    return flat.view(part.items, part.width)
