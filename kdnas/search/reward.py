"""The reward: a candidate's quality, weighed against the cost of running it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kdnas.base.errors import ConfigError, is_number, mounted, require
from kdnas.base.metrics import deciding_metric, is_loss
from kdnas.costs.cost import Cost

Quality = Callable[[Mapping[str, float]], float]
CostOf = Callable[[Cost], float]
Form = Callable[[float, float], float]


@dataclass(frozen=True)
class OneMinusLoss:
    """1 - loss, with the held-out distillation loss (KD-NAS v2, Eq. 4)."""

    def __call__(self, metrics: Mapping[str, float]) -> float:
        return 1 - metrics["loss"]


@dataclass(frozen=True)
class Metric:
    """A held-out metric of which more is better, as accuracy (KD-NAS v1, Eq. 5); None for the deciding one."""

    name: str | None = None

    def __call__(self, metrics: Mapping[str, float]) -> float:
        name = self.name or deciding_metric(metrics)
        fits = name in metrics and not is_loss(name)
        require(fits, "name", self.name, f"a metric beside the loss; the objective measures {', '.join(metrics)}")
        return metrics[name]


@dataclass(frozen=True)
class LatencyOn:
    """The median latency on one accelerator, in ms."""

    accelerator: str = "cpu"

    def __call__(self, cost: Cost) -> float:
        if self.accelerator not in cost.latency:
            known = ", ".join(cost.latency)
            raise ConfigError.of("accelerator", f"={self.accelerator}: not measured; latency.accelerators has {known}")
        return cost.latency[self.accelerator].median


@dataclass(frozen=True)
class Parameters:
    """The number of parameters (KD-NAS v1, Eq. 7)."""

    def __call__(self, cost: Cost) -> float:
        return cost.parameters


def soft(ratio: float, alpha: float) -> float:
    """Returns ratio^alpha: every saving counts. Beta cancels out of the ranking."""
    return ratio**alpha


def hard(ratio: float, alpha: float) -> float:
    """Returns 1 up to the target, ratio^alpha above it: MnasNet's form for a target to be met (Tan et al., 2019)."""
    return 1.0 if ratio <= 1 else ratio**alpha


@dataclass(frozen=True)
class Reward:
    """reward = quality * form(cost / (beta * cost_T), alpha).

    With quality 1 - loss, the soft form and latency this is KD-NAS v2's Eq. 4; with accuracy, v1's Eq. 5; with
    accuracy and parameters, v1's Eq. 7. Where the quality is negative, the product would prefer the slower of two
    candidates; there the quality is divided by the form instead, which joins up at 0 and is monotone in both.

    Args:
        quality: computes the quality from held-out metrics.
        cost: takes one number, in any unit, from a `Cost`.
        alpha: the weight of the cost, at most 0.
        beta: the target, as a share of the teacher's cost.

    Raises:
        ConfigError: a value out of its range; when called, a metric or an accelerator that is not measured.
    """

    quality: Quality
    cost: CostOf
    form: Form = soft
    alpha: float = -0.06
    beta: float = 0.6

    def __post_init__(self) -> None:
        falls = is_number(self.alpha) and self.alpha <= 0
        require(falls, "alpha", self.alpha, "at most 0, or slower students would be better")
        require(is_number(self.beta) and self.beta > 0, "beta", self.beta, "above 0")

    def __call__(self, metrics: Mapping[str, float], student: Cost, teacher: Cost) -> float:
        """Returns the reward of one candidate; NaN where its quality is not finite, which is a failure."""
        with mounted("quality"):
            quality = self.quality(metrics)
        if not math.isfinite(quality):
            return math.nan
        with mounted("cost"):
            ratio = self.cost(student) / (self.beta * self.cost(teacher))
        factor = self.form(ratio, self.alpha)
        return quality * factor if quality >= 0 else quality / factor
