"""The history: what the trials of an Optuna study teach about a grid, episode by episode."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from optuna.distributions import BaseDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from kdnas.search.controllers.grid import Grid

if TYPE_CHECKING:
    from kdnas.search.controllers.predictor import State


class History:
    """The trials of a study as points of a grid. The first trials that have all ended are read once: they stay so.

    Args:
        candidates: the number of candidates of an episode, for trials without the attribute `episode`.
    """

    def __init__(self, study: Study, grid: Grid, candidates: int) -> None:
        self.study, self.grid, self.candidates, self.sign = study, grid, candidates, sign(study)
        self.head = 0
        """The number of first trials that have all ended."""
        self.seen: set[State | None] = set()
        """The states of the trials that have ended."""
        self.pairs: dict[int, dict[int, tuple[State, float]]] = defaultdict(dict)
        """For each episode, by the trial's number, the states and rewards to learn from."""
        self.members: dict[int, set[int]] = defaultdict(set)
        """The numbers of the trials that have a place in each episode."""
        self.open: dict[int, State | None] = {}
        """The states of the trials that have not ended, by number."""

    def read(self, trials: Sequence[FrozenTrial]) -> None:
        """Reads what is new in the study's trials."""
        head, self.open = self.head, {}
        for trial in trials[self.head :]:
            episode, state = episode_of(trial, self.candidates), self.grid.state(trial)
            if trial.user_attrs.get("rejected"):
                self.members[episode].discard(trial.number)
            else:
                self.members[episode].add(trial.number)
            if not trial.state.is_finished():
                self.open[trial.number] = state
                continue
            head += not self.open
            self.seen.add(state)
            if trial.state == TrialState.COMPLETE and state and math.isfinite(trial.value):  # type: ignore[arg-type]
                assert trial.value is not None
                self.pairs[episode][trial.number] = state, self.sign * trial.value
        self.head = head

    def episodes(self, before: float) -> list[list[tuple[State, float]]]:
        """Returns the (state, reward) pairs of each episode before the episode `before`, in the order of the trials."""
        known = sorted(number for number in self.pairs if number < before)
        return [[pair for _, pair in sorted(self.pairs[number].items())] for number in known]


class CommonSpace:
    """The dimensions that all finished trials have: Optuna's `intersection_search_space`, but reading on."""

    def __init__(self) -> None:
        self._study: Study | None = None
        self._head = 0
        self._space: dict[str, BaseDistribution] | None = None

    def grid(self, study: Study, trials: Sequence[FrozenTrial]) -> Grid:
        """Returns the grid of the dimensions that all finished trials of a study have."""
        if self._study is not study:
            self._study, self._head, self._space = study, 0, None
        for trial in trials[self._head :]:
            if trial.state == TrialState.COMPLETE:
                new = trial.distributions
                known = new if self._space is None else self._space
                self._space = {name: d for name, d in known.items() if _same(d, new.get(name))}
        ended = itertools.takewhile(lambda trial: trial.state.is_finished(), trials[self._head :])
        self._head += sum(1 for _ in ended)
        return Grid(dict(sorted((self._space or {}).items())))


def episode_of(trial: FrozenTrial, candidates: int) -> int:
    """Returns the episode of a trial: its attribute `episode`, else its number over the candidates of an episode."""
    return trial.user_attrs.get("episode", trial.number // candidates)


def has_place(trial: FrozenTrial, episode: int, candidates: int) -> bool:
    """Returns whether a trial is one of an episode's candidates, and not a rejected proposal."""
    return episode_of(trial, candidates) == episode and not trial.user_attrs.get("rejected")


def sign(study: Study) -> int:
    """Returns what turns objective values into rewards, and back: 1, or -1 if the study minimises."""
    return -1 if study.direction == StudyDirection.MINIMIZE else 1


def _same(one: BaseDistribution, other: BaseDistribution | None) -> bool:
    """Returns whether two are equal. The attributes are compared first: Optuna goes through long lists one by one."""
    return one is other or (type(one) is type(other) and vars(one) == vars(other)) or one == other
