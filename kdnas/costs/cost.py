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
    """The cost of a model.

    Attributes:
        parameters: the number of parameters, embeddings included, without a pooler or a head.
        flops: the floating-point operations of one inference.
        latency: the latencies by the text of their target, as `cpu`.
    """

    parameters: int
    flops: int
    latency: Mapping[str, Latency]

    @property
    def busy(self) -> bool:
        """Whether one of the latencies was measured on a busy host."""
        return any(latency.busy for latency in self.latency.values())

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Cost:
        """Returns the cost that `to_dict` has made plain values of."""
        latency = {target: Latency(**measured) for target, measured in values["latency"].items()}
        return cls(int(values["parameters"]), int(values["flops"]), latency)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
