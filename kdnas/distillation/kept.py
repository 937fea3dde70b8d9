"""The teacher's outputs, computed once and kept: in memory, or on disk for all processes and searches to come."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import AcquireReturnProxy, FileLock, Timeout
from torch import Tensor
from tqdm.auto import tqdm
from transformers import BatchEncoding

from kdnas.distillation.teacher import KEPT, Corpus, Needs, OnlineTeacher, Teacher, TeacherOutputs
from kdnas.errors import ConfigError, is_number, require
from kdnas.files import check_folder, make_folder, whole
from kdnas.packing import Outputs
from kdnas.shared import shared

log = logging.getLogger(__name__)
GB = 10**9


@dataclass(frozen=True)
class Part:
    """One kept output of the teacher: a row of numbers for each token, or for each row of text."""

    name: str
    items: int
    width: int
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return self.items * self.width * self.dtype.itemsize


def parts_of(needs: Needs, teacher: Teacher, corpus: Corpus) -> list[Part]:
    """What has to be kept so that needs can be met."""
    config = teacher.config
    logits = [Part("logits", corpus.rows, config.num_labels or 0, torch.float32)]
    states = [Part(f"states-{layer:02d}", corpus.tokens, config.hidden_size, KEPT) for layer in sorted(needs.states)]
    first = [Part(f"first-{layer:02d}", corpus.rows, config.hidden_size, KEPT) for layer in sorted(needs.first)]
    return [*states, *first, *(logits if needs.logits else [])]


class KeptOutputs(TeacherOutputs):
    """Outputs that are looked up. They are of clean text: what a pass changes, as masks do, cannot be kept.

    States are bf16 and flat, one token after the other without padding; logits are fp32.

    Args:
        limit: GB that may be taken, by one teacher and set of rows.
        otherwise: the form to take where this one does not fit; None runs the teacher on every batch.
    """

    name: str

    def __init__(self, limit: float, otherwise: TeacherOutputs | None = None) -> None:
        require(is_number(limit) and limit > 0, "outputs.limit", limit, "above 0, in GB")
        self.limit, self.otherwise = limit, otherwise or OnlineTeacher()
        self.parts: Mapping[str, Tensor] = {}

    def open(self, teacher: Teacher, corpus: Corpus | None, needs: Needs, device: torch.device) -> TeacherOutputs:
        if corpus is None:
            raise ConfigError(
                f"outputs={self.name}: keeps what the teacher says of a text, which data.masking changes with every "
                "epoch; must be online"
            )
        wanted = parts_of(needs, teacher, corpus)
        size = sum(part.bytes for part in wanted)
        said = f"{teacher.weights} {teacher.precision} {teacher.head} {corpus.digest}"
        key = hashlib.sha256(said.encode()).hexdigest()[:16]
        limit, reason = self.room(key)
        if size > limit:
            log.info(
                "the teacher's outputs would take %.3g GB %s: more than %.3g, %s",
                *(size / GB, self.where, limit / GB, reason),
            )
            return self.otherwise.open(teacher, corpus, needs, device)
        self.parts = self.keep(key, wanted, teacher, corpus, device)
        self.device = device
        return self

    @property
    @abstractmethod
    def where(self) -> str:
        """As a message says it."""

    @abstractmethod
    def room(self, key: str) -> tuple[float, str]:
        """Bytes that may be taken, and why not more."""

    @abstractmethod
    def keep(
        self, key: str, wanted: list[Part], teacher: Teacher, corpus: Corpus, device: torch.device
    ) -> Mapping[str, Tensor]:
        """The wanted parts, (items, width) each; those that are not there yet are computed."""

    def __call__(self, batch: BatchEncoding, needs: Needs) -> Outputs:
        def take(name: str, items: np.ndarray) -> Tensor:
            kept = self.parts[name]
            places = torch.from_numpy(items).to(kept.device, non_blocking=True)
            return kept.index_select(0, places).to(self.device, non_blocking=True)

        return Outputs(
            {layer: take(f"states-{layer:02d}", batch["tokens"]) for layer in needs.states},
            take("logits", batch["rows"]) if needs.logits else None,
            {layer: take(f"first-{layer:02d}", batch["rows"]) for layer in needs.first},
        )


class MemoryOutputs(KeptOutputs):
    """Outputs in memory, that of the accelerator where they take less than half of what is free there."""

    name = "memory"
    where = "in memory"

    def room(self, key: str) -> tuple[float, str]:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        limit = self.limit * GB
        return (limit, "outputs.limit") if limit <= free / 2 else (free / 2, "half of what is free")

    def keep(
        self, key: str, wanted: list[Part], teacher: Teacher, corpus: Corpus, device: torch.device
    ) -> Mapping[str, Tensor]:
        def make() -> Mapping[str, Tensor]:
            size = sum(part.bytes for part in wanted)
            log.info("keeping %.3g GB of the teacher's outputs %s", size / GB, self.where)
            roomy = device.type == "cuda" and size < torch.cuda.mem_get_info(device)[0] / 2
            place = device if roomy else torch.device("cpu")
            kept = {part.name: torch.empty(part.items, part.width, dtype=part.dtype, device=place) for part in wanted}
            fill(kept, teacher, corpus, device)
            return kept

        return shared("outputs", (key, tuple(wanted), str(device)), make)


class DiskOutputs(KeptOutputs):
    """Outputs in files, one a layer, that are mapped into memory: the page cache is shared by all processes.

    Whichever process comes first computes what is missing, while the others wait.

    Args:
        folder: holds a folder for each combination of teacher, rows and precision. They can be removed at any time
            when nothing runs.
    """

    name = "disk"

    def __init__(self, folder: str, limit: float, otherwise: TeacherOutputs | None = None) -> None:
        super().__init__(limit, otherwise)
        self.folder = check_folder("outputs.folder", folder)

    @property
    def where(self) -> str:
        return f"in {self.folder}"

    def room(self, key: str) -> tuple[float, str]:
        make_folder("outputs.folder", self.folder)
        own = sum(path.stat().st_size for path in self.folder.glob(f"{key}/*"))
        free = shutil.disk_usage(self.folder).free + own
        limit = self.limit * GB
        return (limit, "outputs.limit") if limit <= free / 2 else (free / 2, "half of what the disk has")

    def keep(
        self, key: str, wanted: list[Part], teacher: Teacher, corpus: Corpus, device: torch.device
    ) -> Mapping[str, Tensor]:
        folder = self.folder / key
        make_folder("outputs.folder", folder)
        if any(not self._is_whole(folder, part) for part in wanted):
            with self._alone(folder):
                missing = [part for part in wanted if not self._is_whole(folder, part)]
                if missing:
                    self._write(folder, missing, teacher, corpus, device)
        return {part.name: _mapped(folder / part.name, part) for part in wanted}

    @staticmethod
    def _is_whole(folder: Path, part: Part) -> bool:
        path = folder / part.name
        return path.is_file() and path.stat().st_size == part.bytes

    @staticmethod
    def _alone(folder: Path) -> AcquireReturnProxy:
        lock = FileLock(folder / ".lock")
        try:
            return lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for the process that writes the teacher's outputs to %s", folder)
            return lock.acquire()

    def _write(self, folder: Path, parts: list[Part], teacher: Teacher, corpus: Corpus, device: torch.device) -> None:
        size = sum(part.bytes for part in parts) / GB
        log.info("keeping %.3g GB of the teacher's outputs in %s", size, folder)
        for left in folder.glob(".*-*.*"):  # by a process that died while it wrote
            left.unlink()
        try:
            with ExitStack() as stack:
                files = {part.name: stack.enter_context(whole(folder / part.name)) for part in parts}
                fill({part.name: _mapped(files[part.name], part, new=True) for part in parts}, teacher, corpus, device)
        except OSError as error:
            raise ConfigError(f"outputs.folder={self.folder}: cannot be written to ({error.strerror})") from error


def fill(kept: Mapping[str, Tensor], teacher: Teacher, corpus: Corpus, device: torch.device) -> None:
    """Runs the teacher over all rows, and puts what it says where it belongs."""
    numbers = {kind: {int(name[-2:]) for name in kept if name.startswith(f"{kind}-")} for kind in ("states", "first")}
    needs = Needs(frozenset(numbers["states"]), frozenset(numbers["first"]), "logits" in kept)
    online = OnlineTeacher().open(teacher, corpus, needs, device)
    with tqdm(total=corpus.tokens, unit=" tokens", unit_scale=True, desc="asking the teacher", disable=None) as bar:
        for batch in corpus.batches():
            batch = batch.to(device)
            given = online(batch, needs)
            for layer, states in given.states.items():
                _put(kept[f"states-{layer:02d}"], batch["tokens"], states)
            for layer, states in given.first.items():
                _put(kept[f"first-{layer:02d}"], batch["rows"], states)
            if given.logits is not None and needs.logits:
                _put(kept["logits"], batch["rows"], given.logits)
            bar.update(len(batch["tokens"]))


def _put(kept: Tensor, items: np.ndarray, values: Tensor) -> None:
    kept[torch.from_numpy(items).to(kept.device)] = values.to(kept.device, kept.dtype)


def _mapped(path: Path, part: Part, new: bool = False) -> Tensor:
    """A file as a tensor, (items, width)."""
    if new:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(part.bytes, 1))  # a full disk is an error now, and no crash later
    flat = torch.from_file(str(path), shared=new, size=math.prod((part.items, part.width)), dtype=part.dtype)
    return flat.view(part.items, part.width)
