"""Targets (where a latency is measured) and protocols (how it is measured)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedConfig

from kdnas.base.errors import ConfigError, require, require_whole
from kdnas.models.families import family_of

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""The dtypes that a target can name, with torch's names for them."""
QUANTISATIONS = ("int8",)  # the quantisations that a target can name; each runtime says which of them it offers
TORCH = "torch"  # the runtime of a target that names none
MOST_THREADS = 1024  # the most threads that are accepted; no host has as many


@dataclass(frozen=True)
class Target:
    """A device, and how a model runs on it. The text of a target is its name in settings, tables and columns."""

    device: str  # a key of `kdnas.costs.devices.DEVICES`
    runtime: str = TORCH  # the library that runs the model, by its name in `latency.runtimes`
    dtype: str | None = None  # a key of `DTYPES`, for weights and activations; None for the protocol's dtype
    quantisation: str | None = None  # one of `QUANTISATIONS`

    @classmethod
    def of(cls, text: str) -> Target:
        """Reads `DEVICE` or `DEVICE/RUNTIME-DTYPE-QUANTISATION`; raises a ConfigError for empty or repeated words."""
        device, slash, rest = str(text).partition("/")
        words = rest.split("-") if slash else []
        values = {_kind(word): word for word in words}
        if len(values) < len(words) or "" in words:
            raise ConfigError.of("accelerators", f"={text}: must be as cpu, cuda/bf16 or cpu/onnx-int8")
        return cls(device, **values)

    def __str__(self) -> str:
        words = [None if self.runtime == TORCH else self.runtime, self.dtype, self.quantisation]
        return "/".join(filter(None, [self.device, "-".join(filter(None, words))]))


def _kind(word: str) -> str:
    if word in DTYPES:
        return "dtype"
    return "quantisation" if word in QUANTISATIONS else "runtime"


@dataclass(frozen=True)
class Protocol:
    """The settings of a latency measurement; raises a ConfigError for a setting out of range."""

    batch_size: int = 1
    length: int = 128  # of the input in tokens, without padding
    threads: int = 1  # the number of CPU threads during the measurement
    warmup: int = 5  # the number of inferences before those that are counted
    repeats: int = 30  # the number of counted inferences of one run
    runs: int = 3  # each with a new model, so that an unlucky memory layout shows in the spread
    dtype: str = "float32"  # of weights and activations, as torch names it; a target can name another

    def __post_init__(self) -> None:
        for name in ("batch_size", "length", "threads", "repeats", "runs"):
            require_whole(name, getattr(self, name), 1)
        require_whole("warmup", self.warmup, 0)
        # torch starts any number of threads, or crashes.
        require(self.threads <= MOST_THREADS, "threads", self.threads, f"at most {MOST_THREADS}")
        dtype = getattr(torch, str(self.dtype), None)
        floating = isinstance(dtype, torch.dtype) and dtype.is_floating_point
        require(floating, "dtype", self.dtype, "a torch dtype, as float32, bfloat16 or float16")

    def on(self, target: Target) -> Protocol:
        """Returns the protocol with the dtype that a target names, if it names one."""
        return replace(self, dtype=DTYPES[target.dtype]) if target.dtype else self

    def check(self, config: PreTrainedConfig) -> None:
        """Raises a ConfigError if the input is longer than the positions of models of this config."""
        longest = family_of(config).positions(config)
        require(self.length <= longest, "length", self.length, f"at most {longest}")
