"""The results of an evaluation of proxies: τ of each proxy, and the recommended one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean

from kdnas.base.metrics import deciding_metric, quality
from kdnas.search.fidelity import RANKED_BY, Criterion, Proxy, Tau
from kdnas.search.observation import Observation


@dataclass(frozen=True)
class Rankings:
    """The architectures as one training ranks them: `proxy`, or the full distillation where it is None.

    Args:
        seen: the observation of each architecture; all rankings that are compared have them in the same order.
    """

    proxy: Proxy | None
    seen: Sequence[Observation]

    @property
    def values(self) -> dict[str, list[float]]:
        """The values that architectures are ranked by, one each, larger is better; a loss is negated."""
        values = [quality(one.metrics) for one in self.seen], [one.reward for one in self.seen]
        return dict(zip(RANKED_BY, values, strict=True))

    @property
    def seconds(self) -> float:
        """The mean time of training one architecture; those of a gang share its time equally."""
        return mean(one.seconds for one in self.seen)


@dataclass(frozen=True)
class Score:
    """The agreement of one proxy with full distillation.

    Args:
        taus: Kendall's τ between the proxy's ranking and the full one, by what ranks: `quality` and `reward`.
        best: the place, from 1, of the proxy's best architecture in the full ranking, likewise.
        share: of the time of a full distillation.
    """

    proxy: Proxy
    taus: dict[str, Tau]
    best: dict[str, int]
    seconds: float
    share: float


@dataclass(frozen=True)
class Comparison:
    """The proxies of a grid, compared on the architectures that finished every training.

    Args:
        proxies: the ranking of each proxy, in the grid's order.
        left_out: a line for each architecture that failed, with the reason.
    """

    name: str
    proxies: Sequence[Rankings]
    full: Rankings
    criterion: Criterion
    left_out: Sequence[str] = ()

    @property
    def metric(self) -> str:
        """The name of the deciding held-out metric."""
        return deciding_metric(self.full.seen[0].metrics)

    @cached_property
    def scores(self) -> list[Score]:
        """The score of each proxy."""
        return [self._score(one) for one in self.proxies]

    def _score(self, one: Rankings) -> Score:
        assert one.proxy is not None
        pairs = {name: (values, self.full.values[name]) for name, values in one.values.items()}
        return Score(
            proxy=one.proxy,
            taus={name: self.criterion.tau(*pair) for name, pair in pairs.items()},
            best={name: place_of_best(*pair) for name, pair in pairs.items()},
            seconds=one.seconds,
            share=one.seconds / self.full.seconds if self.full.seconds else math.nan,
        )

    @property
    def busy(self) -> bool:
        """Whether a latency was measured on a busy host."""
        return any(one.cost.busy for one in self.full.seen if one.cost)

    @property
    def passing(self) -> Score | None:
        """The proxy with the fewest passes over the rows whose lower bound reaches the threshold; None if none does.

        Of equally large ones, it is the one with the highest lower bound.
        """
        by, threshold = self.criterion.by, self.criterion.threshold
        fit = [one for one in self.scores if one.taus[by].low >= threshold]
        return min(fit, key=lambda one: (one.proxy.passes, -one.taus[by].low), default=None)

    @property
    def chosen(self) -> Score:
        """The proxy that passes or, if none does, the one with the highest lower bound."""
        lows = [one.taus[self.criterion.by].low for one in self.scores]
        known = [-math.inf if math.isnan(low) else low for low in lows]
        return self.passing or self.scores[known.index(max(known))]


def place_of_best(first: Sequence[float], second: Sequence[float]) -> int:
    """Returns the place, from 1, that the largest of the first values has among the second ones."""
    chosen = second[max(range(len(first)), key=lambda i: first[i])]
    return 1 + sum(other > chosen for other in second)
