"""The results of a search, read from its studies for all reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from optuna.trial import FrozenTrial, TrialState

from kdnas.base.metrics import LOSS, is_loss
from kdnas.costs.cost import Cost
from kdnas.search.ranking import Decided, Ranked, Ranking, better_cost, final_ranking
from kdnas.search.study import Study


@dataclass(frozen=True)
class Results:
    """A search's results. What is not known is None or empty."""

    name: str
    ranking: list[Ranked]  # the finished candidates, the best first
    top: int  # the number of best candidates that are shown, besides those distilled in full
    failed: list[FrozenTrial] = field(default_factory=list)  # the trials of the candidates that failed
    teacher: Cost | None = None
    teacher_metrics: Mapping[str, float] = field(default_factory=dict)  # held-out, as all metrics
    chance: Mapping[str, float] = field(default_factory=dict)  # the metrics of the best constant prediction
    precision: str | None = None  # in which every candidate was trained, as Lightning names it
    rows: int | None = None  # the number of examples that the held-out metrics are computed on

    @classmethod
    def of(
        cls, name: str, candidates: Study, finalists: Study | None = None, top: int = 0, ranking: Ranking | None = None
    ) -> Results:
        """Reads the studies of a search: of mini-KD, and of the full distillations."""
        return cls(
            name,
            final_ranking(ranking or Decided(candidates.order), candidates, finalists),
            top,
            candidates.trials(TrialState.FAIL),
            better_cost(candidates.teacher, finalists.teacher if finalists else None),
            candidates.teacher_metrics,
            candidates.chance,
            candidates.precision,
            candidates.held_out_rows,
        )

    @property
    def best(self) -> Ranked | None:
        return self.ranking[0] if self.ranking else None

    @cached_property
    def shown(self) -> list[Ranked]:
        """The candidates that tables show: the `top` best, and all that were distilled in full."""
        return [one for one in self.ranking if one.rank <= self.top or one.full]

    @cached_property
    def finalists(self) -> list[Ranked]:
        """The candidates distilled in full; if there are none yet, the `top` best."""
        return [one for one in self.ranking if one.full] or self.ranking[: self.top]

    @cached_property
    def metric_names(self) -> list[str]:
        """The names of the held-out metrics: the deciding one first, losses last."""
        seen = [part for one in self.ranking for part in (one.mini, one.full) if part]
        names = dict.fromkeys(name for one in seen for name in one.metrics)
        known = [*names, *self.teacher_metrics, *self.chance]
        losses = [LOSS, *(name for name in dict.fromkeys(known) if is_loss(name) and name != LOSS)]
        return [*(name for name in dict.fromkeys(known) if not is_loss(name)), *losses]

    @property
    def metric(self) -> str | None:
        """The name of the deciding metric; None where the loss decides."""
        return None if self.metric_names[0] == LOSS else self.metric_names[0]

    @cached_property
    def devices(self) -> list[str]:
        """The devices that latencies were measured on."""
        costs = [self.teacher, *(one.cost for one in self.ranking)]
        return list(dict.fromkeys(device for cost in costs if cost for device in cost.latency))

    @cached_property
    def busy(self) -> bool:
        """Whether a latency that the tables show was measured on a busy host."""
        costs = [self.teacher, *(one.cost for one in self.shown)]
        return any(cost.busy for cost in costs if cost)
