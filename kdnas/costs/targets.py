"""Targets: what a latency is measured on."""

from __future__ import annotations

from dataclasses import dataclass

from kdnas.base.errors import ConfigError

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""The dtypes that a target can name, with torch's names for them."""
QUANTISATIONS = ("int8",)
"""The quantisations that a target can name; each runtime says which of them it offers."""
TORCH = "torch"
"""The runtime of a target that names none."""


@dataclass(frozen=True)
class Target:
    """A device, and how a model runs on it. The text of a target is its name in settings, tables and columns."""

    device: str  # a key of `kdnas.costs.devices.DEVICES`
    runtime: str = TORCH  # the library that runs the model, by its name in `latency.runtimes`
    dtype: str | None = None  # a key of `DTYPES`, for weights and activations; None for the protocol's dtype
    quantisation: str | None = None  # one of `QUANTISATIONS`

    @classmethod
    def of(cls, text: str) -> Target:
        """Reads `DEVICE` or `DEVICE/RUNTIME-DTYPE-QUANTISATION` with one to three of these words.

        Raises:
            ConfigError: two words of one kind, or an empty one.
        """
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
