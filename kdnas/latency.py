"""Latency: how it is measured, on a quiet host, and the table that keeps it."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from kdnas.architecture import Architecture
from kdnas.errors import ConfigError, is_number, require, require_whole
from kdnas.files import check_folder, make_folder
from kdnas.locks import take
from kdnas.models import new_encoder, positions
from kdnas.search.study import Latency

log = logging.getLogger(__name__)
MANY = 1024
"""Threads beyond those of any host."""

BACKENDS: dict[str, tuple[Callable[[], bool], Callable[[], None]]] = {
    "cpu": (lambda: True, lambda: None),
    "cuda": (torch.cuda.is_available, torch.cuda.synchronize),
    "mps": (torch.backends.mps.is_available, torch.mps.synchronize),
}
"""For each accelerator: whether it is there, and how to wait for it."""


def available_accelerators() -> list[str]:
    return [name for name, (exists, _) in BACKENDS.items() if exists()]


def check_accelerators(wanted: list[str]) -> None:
    there = available_accelerators()
    for name in wanted:
        if name not in there:
            raise ConfigError(f"latency.accelerators={name}: not on this machine; it has {', '.join(there)}")


@dataclass(frozen=True)
class Protocol:
    """How latency is measured.

    Args:
        batch_size, length: of the input; every position is a real token.
        threads: of the CPU; pinned during the measurement.
        warmup: inferences that are not counted.
        repeats: inferences of one run that are.
        runs: each with a freshly made model, so that an unlucky memory layout shows in the spread.
        dtype: of weights and activations, as torch names it.
    """

    batch_size: int = 1
    length: int = 128
    threads: int = 1
    warmup: int = 5
    repeats: int = 30
    runs: int = 3
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("batch_size", "length", "threads", "repeats", "runs"):
            require_whole(f"latency.{name}", getattr(self, name), 1)
        require_whole("latency.warmup", self.warmup, 0)
        # torch makes as many threads as it is told to, or dies of it.
        require(self.threads <= MANY, "latency.threads", self.threads, f"at most {MANY}")
        dtype = getattr(torch, str(self.dtype), None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ConfigError(f"latency.dtype={self.dtype}: must be a torch dtype, as float32, bfloat16 or float16")

    def check(self, config: PreTrainedConfig) -> None:
        """Refuses a length that models of this config cannot take."""
        require(self.length <= positions(config), "latency.length", self.length, f"at most {positions(config)}")


def device_name(accelerator: str) -> str:
    """The device as its maker calls it: latencies of different devices never share a row."""
    if accelerator == "cuda":
        return torch.cuda.get_device_name()
    if accelerator == "cpu" and Path("/proc/cpuinfo").is_file():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()} ({os.cpu_count()} cores)"
    return f"{platform.machine()} {accelerator}"


def measure(model: PreTrainedModel, accelerator: str, protocol: Protocol) -> list[float]:
    """Milliseconds of each of `repeats` inferences.

    An inference that the scheduler interrupted for another process says nothing of the model: it is repeated, as
    long as there are not more of them than counted ones.
    """
    synchronize = BACKENDS[accelerator][1]
    model = model.eval().to(accelerator, dtype=getattr(torch, protocol.dtype))
    tokens = torch.full((protocol.batch_size, protocol.length), 1, dtype=torch.long, device=accelerator)
    mask = torch.ones_like(tokens)
    threads = torch.get_num_threads()
    torch.set_num_threads(protocol.threads)
    times: list[float] = []
    disturbed: list[float] = []
    try:
        with torch.inference_mode():
            for _ in range(protocol.warmup):
                model(input_ids=tokens, attention_mask=mask)
            while len(times) < protocol.repeats and len(disturbed) < protocol.repeats:
                synchronize()
                interruptions = getrusage(RUSAGE_SELF).ru_nivcsw
                start = time.perf_counter()
                model(input_ids=tokens, attention_mask=mask)
                synchronize()
                elapsed = (time.perf_counter() - start) * 1e3
                (times if getrusage(RUSAGE_SELF).ru_nivcsw == interruptions else disturbed).append(elapsed)
    finally:
        torch.set_num_threads(threads)
    return (times + disturbed)[: protocol.repeats]


def measure_config(config: PreTrainedConfig, accelerator: str, protocol: Protocol) -> Latency:
    """The latency of a model of this config, randomly initialised: weights do not matter to it."""
    protocol.check(config)
    times = [time for _ in range(protocol.runs) for time in measure(new_encoder(config, seed=0), accelerator, protocol)]
    low, median, high = np.percentile(times, [5, 50, 95])
    return Latency(median=float(median), spread=float(high - low) / 2)


def host_folder() -> Path:
    """Where the processes of one host meet; not $TMPDIR, which a cluster sets for each job."""
    folder = Path("/tmp") / f"kdnas-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


class QuietHost:
    """A host-wide lock with which measuring excludes training, across processes.

    A training step holds `busy()`, a measurement `quiet()`. Many processes can be busy at once; a measurement waits
    for the steps that are under way, and no new one starts before it ends. The gate in front keeps a stream of steps
    from starving it. The kernel frees the locks of a process that dies.
    """

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or host_folder()
        self.gate, self.host = folder / "gate.lock", folder / "host.lock"

    @contextmanager
    def busy(self) -> Iterator[None]:
        with self._locked(self.host, fcntl.LOCK_SH, behind_gate=True):
            yield

    def wanted(self) -> bool:
        """Whether a measurement is waiting for the host."""
        with self.gate.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    @contextmanager
    def quiet(self) -> Iterator[None]:
        with self._locked(self.gate, fcntl.LOCK_EX), self._locked(self.host, fcntl.LOCK_EX):
            yield

    @contextmanager
    def _locked(self, path: Path, mode: int, behind_gate: bool = False) -> Iterator[None]:
        with path.open("a") as file:
            if behind_gate:
                with self._locked(self.gate, fcntl.LOCK_SH):
                    take(file, mode)
            else:
                take(file, mode)
            yield


class LatencyTable:
    """Latencies by everything that they depend on, one JSON line each, shared by all searches that use the file.

    Args:
        path: of the file; made when absent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_dir():
            raise ConfigError(f"latency.table={path}: is a folder; must be a file, or not there")
        check_folder("latency.table", path.parent)

    def latency(self, config: PreTrainedConfig, accelerator: str, protocol: Protocol) -> Latency:
        """From the table or, the first time, measured while the host is quiet and written there."""
        key = self.key(config, accelerator, protocol)
        found = self._find(key)
        if found is None:
            with QuietHost().quiet():
                found = self._find(key) or self._measure(key, config, accelerator, protocol)
        return found

    @staticmethod
    def key(config: PreTrainedConfig, accelerator: str, protocol: Protocol) -> dict[str, Any]:
        names = ["model_type", "vocab_size", *Architecture.__dataclass_fields__]
        model = {name: getattr(config, name) for name in names}
        software = {"torch": torch.__version__, "attention": config._attn_implementation or "sdpa"}
        return model | {"accelerator": accelerator, "device": device_name(accelerator)} | asdict(protocol) | software

    def _find(self, key: dict[str, Any]) -> Latency | None:
        if not self.path.is_file():
            return None
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # a line cut short by a crash: it is measured again, like all that is no latency
            if isinstance(row, dict) and row.get("key") == key and is_latency(row.get("median"), row.get("spread")):
                return Latency(row["median"], row["spread"])
        return None

    def _measure(self, key: dict[str, Any], config: PreTrainedConfig, accelerator: str, protocol: Protocol) -> Latency:
        make_folder("latency.table", self.path.parent)
        measured = measure_config(config, accelerator, protocol)
        # A line that a crash cut short must not spoil this one.
        cut = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a") as file:
            file.write("\n" * cut + json.dumps({"key": key, **asdict(measured)}) + "\n")
        return measured


def is_latency(median: Any, spread: Any) -> bool:
    return is_number(median) and is_number(spread) and median > 0 and spread >= 0
