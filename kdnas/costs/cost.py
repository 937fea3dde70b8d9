"""The cost of a model: parameters, FLOPs, latencies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Latency:
    """The latency of one inference, in milliseconds."""

    median: float
    spread: float  # half the width of the middle 90 %
    busy: bool = False  # whether other programs disturbed the measurement, so that the latency is unreliable


@dataclass(frozen=True)
class Cost:
    """The cost of a model."""

    parameters: int  # embeddings included, without a pooler or a head
    flops: int  # the floating-point operations of one inference
    latency: Mapping[str, Latency]  # by the text of their target, as `cpu`

    @property
    def busy(self) -> bool:
        """Whether one of the latencies was measured on a busy host."""
        return any(latency.busy for latency in self.latency.values())

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Cost:
        """Reads what `to_dict` returns."""
        latency = {target: Latency(**measured) for target, measured in values["latency"].items()}
        return cls(int(values["parameters"]), int(values["flops"]), latency)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
