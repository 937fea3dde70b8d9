"""The episode loop: propose, evaluate, learn; then distil the best candidates in full."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from kdnas.base.errors import ConfigError, is_number, require, require_whole
from kdnas.models.space import SearchSpace
from kdnas.search.study import ControllerFactory, Study

ENDED = (TrialState.COMPLETE, TrialState.FAIL)

Gang = list[FrozenTrial]
"""The trials that one job trains together."""

Evaluate = Callable[[str, list[Gang]], Sequence[str]]
"""Runs the jobs of a stage (`mini` or `full`) to their ends; returns for each why it failed, empty if it did not."""


@dataclass(frozen=True)
class SearchSettings:
    """The size of a search.

    Args:
        episodes: the number of episodes.
        candidates: the number of candidates of one episode.
        finalists: the number of best candidates that are distilled in full at the end; 0 for none.
        gang: the number of candidates that one job trains together, on one forward pass of the teacher.
        retries: how often a job is run again if its process dies, as when it is killed or its node fails. A job that
            raises an error is not run again.
        max_failed: the share of candidates that may fail before the search gives up.
    """

    episodes: int
    candidates: int
    finalists: int
    gang: int = 1
    retries: int = 1
    max_failed: float = 0.5

    def __post_init__(self) -> None:
        for name, least in (("episodes", 1), ("candidates", 1), ("finalists", 0), ("gang", 1), ("retries", 0)):
            require_whole(f"search.{name}", getattr(self, name), least)
        share = is_number(self.max_failed) and 0 <= self.max_failed <= 1
        require(share, "search.max_failed", self.max_failed, "from 0 to 1")


class Search:
    """One search, resumed from the state of its studies.

    Args:
        settings: the size of the search.
        mini, full: the studies of the candidates and of the finalists.
        space, controller, seed: the search space, and the controller that chooses from it.
        evaluate: runs jobs; each job reports its trials to the study itself.
    """

    def __init__(
        self,
        settings: SearchSettings,
        mini: Study,
        full: Study,
        space: SearchSpace,
        controller: ControllerFactory,
        seed: int,
        evaluate: Evaluate,
    ) -> None:
        self.settings, self.mini, self.full = settings, mini, full
        self.space, self.controller, self.seed, self.evaluate = space, controller, seed, evaluate

    def run(self) -> None:
        """Runs every episode, then the finalists. Finished trials are not run again.

        Raises:
            ConfigError: too many candidates, or all finalists, failed.
        """
        self.run_episodes()
        self.run_finalists()

    def run_episodes(self) -> None:
        """Proposes and scores the candidates."""
        self.mini.optuna.set_user_attr("finished", False)
        before = {trial.number for trial in self.mini.trials(*ENDED)}
        gang = self.settings.gang
        for episode in range(self.settings.episodes):
            self.mini.propose(self.settings.candidates, episode, self.space, self.controller, self.seed, gang)
            self._finish("mini", self.mini)
            self._check(before)

    def run_finalists(self) -> None:
        """Distils the best candidates in full."""
        ranked = self.mini.ranked()
        if not ranked:
            raise ConfigError(f"search: none of {len(self.mini.trials())} candidates finished; {reasons(self.mini)}")
        there = self.full.current(TrialState.RUNNING, TrialState.COMPLETE)
        known = {trial.user_attrs["candidate"] for trial in there}
        for seen in ranked[: self.settings.finalists]:
            if seen.trial not in known:
                about = {"episode": 0, "origin": seen.origin, "candidate": seen.trial}
                self.full.add(seen.architecture, about | {"generation": self.full.generation}, space=self.space)
        self._finish("full", self.full)
        if self.settings.finalists and not self.full.observations:
            raise ConfigError(f"search: no finalist could be distilled in full; {reasons(self.full)}")
        self.mini.optuna.set_user_attr("finished", True)

    def _finish(self, stage: str, study: Study) -> None:
        """Runs the jobs of a study's running trials, again if their processes die, until every trial has ended."""
        died: dict[tuple[int, ...], list[str]] = defaultdict(list)
        while jobs := study.jobs():
            worn = [job for job in jobs if len(died[numbers(job)]) > self.settings.retries]
            for job in worn:
                if len(job) > 1:  # run the members alone to find the one that fails
                    study.part(numbers(job))
                else:
                    tries = died[numbers(job)]
                    study.fail(job[0].number, f"{tries[-1]} (tried {len(tries)} times)")
            if not worn:
                for job, reason in zip(jobs, self.evaluate(stage, jobs), strict=True):
                    died[numbers(job)].append(reason or "the job ended without a result or an error")

    def _check(self, before: set[int]) -> None:
        """Raises an error if too many of the candidates that this run of the search has ended failed."""
        ended = [trial for trial in self.mini.trials(*ENDED) if trial.number not in before]
        failed = sum(trial.state == TrialState.FAIL for trial in ended)
        if failed > self.settings.max_failed * len(ended):
            raise ConfigError(
                f"search.max_failed={self.settings.max_failed}: {failed} of {len(ended)} candidates failed; "
                f"{reasons(self.mini)}; see their logs, then run the same command to go on"
            )


def numbers(job: Gang) -> tuple[int, ...]:
    return tuple(trial.number for trial in job)


def reasons(study: Study) -> str:
    """Summarizes why trials failed, with counts, the most frequent reason first."""
    failed = [trial.user_attrs.get("reason", "unknown") for trial in study.current(TrialState.FAIL)]
    counted = sorted({reason: failed.count(reason) for reason in failed}.items(), key=lambda item: -item[1])
    return "; ".join(f"{count} x {reason}" for reason, count in counted) or "none failed"
