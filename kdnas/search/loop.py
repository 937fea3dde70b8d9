"""The loop of a search: runs the schedule's jobs, again if their processes die, until every trial has ended."""

from collections import defaultdict
from collections.abc import Callable, Sequence

from optuna.trial import TrialState

from kdnas.base.errors import ConfigError
from kdnas.search.job import Job
from kdnas.search.schedule import Schedule
from kdnas.search.search import Search, reasons

ENDED = (TrialState.COMPLETE, TrialState.FAIL)

Evaluate = Callable[[Sequence[Job]], Sequence[str]]
"""Runs jobs of one kind to their ends; returns for each why it failed, empty if it did not."""


class Loop:
    """Runs one search, which goes on from the state of its studies. Each job reports its trials to the study itself."""

    def __init__(self, search: Search, schedule: Schedule, evaluate: Evaluate) -> None:
        self.search, self.schedule, self.evaluate = search, schedule, evaluate

    def run(self) -> None:
        """Runs what is left of the schedule; raises a ConfigError if too many candidates or all finalists fail."""
        self.search.mini.order = None
        before = {trial.number for trial in self.search.mini.trials(*ENDED)}
        for jobs in self.schedule.batches(self.search):
            self._finish(jobs)
            self._check(before)
        self._finish(self.search.corrections())
        self.search.conclude()

    def _finish(self, jobs: Sequence[Job]) -> None:
        """Runs jobs, again if their processes die, until all of their trials have ended."""
        deaths: dict[tuple[int, ...], list[str]] = defaultdict(list)
        while jobs:
            study = self.search.studies.get(jobs[0].kind)  # none for jobs without trials, which are run once
            if hopeless := [job for job in jobs if len(deaths[job.trials]) > self.search.settings.retries]:
                for job in hopeless:
                    self._give_up(job, deaths[job.trials])
            else:
                for job, reason in zip(jobs, self.evaluate(jobs), strict=True):
                    deaths[job.trials].append(reason or "the job ended without a result or an error")
            jobs = study.jobs() if study else []

    def _give_up(self, job: Job, deaths: Sequence[str]) -> None:
        """Fails the trial of a job; splits a gang, to find the member that its process dies of."""
        study = self.search.studies[job.kind]
        if len(job.trials) > 1:
            study.split(job.trials)
        else:
            study.fail(job.trials[0], f"{deaths[-1]} (tried {len(deaths)} times)")

    def _check(self, before: set[int]) -> None:
        """Raises an error if too many of the candidates that this run of the search has ended failed."""
        mini, allowed = self.search.mini, self.search.settings.max_failed
        ended = [trial for trial in mini.trials(*ENDED) if trial.number not in before]
        failed = sum(trial.state == TrialState.FAIL for trial in ended)
        if failed > allowed * len(ended):
            raise ConfigError.of(
                "max_failed",
                f"={allowed}: {failed} of {len(ended)} candidates failed; {reasons(mini)}; "
                "see their logs, then run the same command to go on",
            )
