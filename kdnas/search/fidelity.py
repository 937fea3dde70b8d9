"""The fidelity of a proxy: whether short trainings rank architectures as full distillations do, by Kendall's τ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdnas.base.errors import is_number, require, require_whole

LEAST = 4
"""The fewest architectures that an interval of τ says anything about."""
RANKED_BY = ("quality", "reward")
"""The values to rank architectures by: the deciding held-out metric alone, or the reward, which includes the cost."""


@dataclass(frozen=True, order=True)
class Proxy:
    """A short training that stands for the full one; a `ConfigError` refuses an impossible one.

    Args:
        epochs: the number of epochs, of each stage where the objective's stages have their own.
        data: the share of the training rows.
    """

    epochs: int
    data: float

    def __post_init__(self) -> None:
        require_whole("epochs", self.epochs, 1)
        require(is_number(self.data) and 0 < self.data <= 1, "data", self.data, "above 0 and at most 1")

    @property
    def passes(self) -> float:
        """The size of the training, in passes over all training rows."""
        return round(self.epochs * self.data, 9)  # 3 x 0.1 and 1 x 0.3 are equally large

    def to_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs, "data": self.data}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Proxy":
        return cls(values["epochs"], values["data"])

    def __str__(self) -> str:
        return f"{self.epochs} epoch{'s' * (self.epochs > 1)} on {100 * self.data:g} % of the rows"


@dataclass(frozen=True)
class Tau:
    """Kendall's τ-b of two rankings and its bootstrap interval; NaN where all values of one ranking are equal."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Criterion:
    """When a proxy is good enough: when the lower bound of its τ reaches a threshold.

    Args:
        by: whose τ decides, one of `RANKED_BY`.
        threshold: the least lower bound.
        confidence: the share of the resamples that the interval between the bounds covers.
        resamples: the number of resamples of the architectures, whose percentiles are the bounds.
        seed: draws the resamples, the same ones for all rankings of equally many architectures.
    """

    by: str = "quality"
    threshold: float = 0.7
    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.by in RANKED_BY, "by", self.by, f"one of {', '.join(RANKED_BY)}")
        require(is_number(self.threshold) and 0 <= self.threshold <= 1, "threshold", self.threshold, "from 0 to 1")
        covers = is_number(self.confidence) and 0 < self.confidence < 1
        require(covers, "confidence", self.confidence, "above 0 and below 1")
        require_whole("resamples", self.resamples, 100)

    def tau(self, first: Sequence[float], second: Sequence[float]) -> Tau:
        """Returns Kendall's τ-b between two values of the same architectures, with its interval.

        A resample holds some architectures several times. τ-b leaves out the pairs of such copies, as all ties; a
        resample without any other pair is left out itself.
        """
        count = len(first)
        value = _tau_b(first, second, np.ones((1, count)))[0]
        draws = np.random.default_rng(self.seed).multinomial(count, np.full(count, 1 / count), size=self.resamples)
        found = _tau_b(first, second, draws.astype(float))
        found = found[~np.isnan(found)]
        outside = (1 - self.confidence) / 2
        low, high = np.quantile(found, [outside, 1 - outside]) if len(found) else (np.nan, np.nan)
        return Tau(float(value), float(low), float(high))


def _tau_b(first: Sequence[float], second: Sequence[float], counts: np.ndarray) -> np.ndarray:
    """Returns τ-b (Kendall, 1945) for each row of `counts`, which says how often each architecture is drawn.

    τ_b = Σ_ij s_ij t_ij / sqrt(Σ_ij s_ij² · Σ_ij t_ij²), s_ij and t_ij the signs of the differences between i and j.
    """
    signs = [np.sign(np.subtract.outer(np.asarray(values), np.asarray(values))) for values in (first, second)]

    def total(pairs: np.ndarray) -> np.ndarray:
        return ((counts @ pairs) * counts).sum(axis=1)

    untied = total(signs[0] ** 2) * total(signs[1] ** 2)
    known = untied > 0
    return np.where(known, total(signs[0] * signs[1]) / np.sqrt(np.where(known, untied, 1)), np.nan)
