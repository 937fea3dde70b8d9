"""What a model costs: parameters, FLOPs, latencies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Latency:
    """The latency of one inference, in milliseconds.

    Attributes:
        median: the median of all counted inferences.
        spread: half the width of the middle 90 %.
        busy: whether other programs disturbed the measurement, so that the latency is unreliable.
    """

    median: float
    spread: float
    busy: bool = False


@dataclass(frozen=True)
class Cost:
    """The cost of a model: parameters, FLOPs of one inference, latency by accelerator."""

    parameters: int
    flops: int
    latency: Mapping[str, Latency]

    @property
    def busy(self) -> bool:
        """Whether one of the latencies was measured on a busy host."""
        return any(latency.busy for latency in self.latency.values())

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Cost:
        latency = {device: Latency(**measured) for device, measured in values["latency"].items()}
        return cls(int(values["parameters"]), int(values["flops"]), latency)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
