"""Rewards: what a candidate learned, weighed against what it costs to run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kdnas.base.errors import ConfigError, is_number, require
from kdnas.costs.cost import Cost

Quality = Callable[[Mapping[str, float]], float]
CostOf = Callable[[Cost], float]
Form = Callable[[float, float], float]


@dataclass(frozen=True)
class OneMinusLoss:
    """1 - loss, of the held-out distillation loss (KD-NAS v2, Eq. 4)."""

    def __call__(self, metrics: Mapping[str, float]) -> float:
        return 1 - metrics["loss"]


@dataclass(frozen=True)
class Metric:
    """A held-out metric that is better when larger, as accuracy (KD-NAS v1, Eq. 5)."""

    name: str = "accuracy"

    def __call__(self, metrics: Mapping[str, float]) -> float:
        if self.name not in metrics:
            raise ConfigError(f"reward.quality.name={self.name}: not measured; there is {', '.join(metrics)}")
        return metrics[self.name]


@dataclass(frozen=True)
class LatencyOn:
    """The median latency on one accelerator, in ms."""

    accelerator: str = "cpu"

    def __call__(self, cost: Cost) -> float:
        if self.accelerator not in cost.latency:
            raise ConfigError(
                f"reward.cost.accelerator={self.accelerator}: not measured; "
                f"latency.accelerators has {', '.join(cost.latency)}"
            )
        return cost.latency[self.accelerator].median


@dataclass(frozen=True)
class Parameters:
    """The number of parameters (KD-NAS v1, Eq. 7)."""

    def __call__(self, cost: Cost) -> float:
        return cost.parameters


def soft(ratio: float, alpha: float) -> float:
    """ratio^alpha: every saving counts. Beta cancels out of the ranking."""
    return ratio**alpha


def hard(ratio: float, alpha: float) -> float:
    """1 up to the target, ratio^alpha above it: MnasNet's form for a target that must be met (Tan et al., 2019)."""
    return 1.0 if ratio <= 1 else ratio**alpha


@dataclass(frozen=True)
class Reward:
    """reward = quality * form(cost / (beta * cost_T), alpha).

    With quality 1 - loss, the soft form and latency this is KD-NAS v2's Eq. 4; with accuracy, v1's Eq. 5; with
    accuracy and parameters, v1's Eq. 7. Where the quality is negative, the product would prefer the slower of two
    candidates; there the quality is divided by the form instead, which joins up at 0 and is monotone in both.

    Args:
        alpha: the weight of the cost, at most 0.
        beta: the target, as a share of the teacher's cost.
        quality: of the held-out metrics.
        cost: of a `Cost`, in any unit.
        form: `soft` or `hard`.
    """

    quality: Quality
    cost: CostOf
    form: Form = soft
    alpha: float = -0.06
    beta: float = 0.6

    def __post_init__(self) -> None:
        falls = is_number(self.alpha) and self.alpha <= 0
        require(falls, "reward.alpha", self.alpha, "at most 0, or slower students would be better")
        require(is_number(self.beta) and self.beta > 0, "reward.beta", self.beta, "above 0")

    def __call__(self, metrics: Mapping[str, float], student: Cost, teacher: Cost) -> float:
        """The reward of one candidate; NaN where its quality is not finite, which is a failure and not a reward."""
        quality = self.quality(metrics)
        if not math.isfinite(quality):
            return math.nan
        factor = self.form(self.cost(student) / (self.beta * self.cost(teacher)), self.alpha)
        return quality * factor if quality >= 0 else quality / factor
