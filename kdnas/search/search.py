"""A search: its settings, its studies, and what chooses and orders its candidates."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState

from kdnas.base.errors import ConfigError, is_number, require, require_whole
from kdnas.search.job import Job
from kdnas.search.observation import Observation
from kdnas.search.proposing import Proposer
from kdnas.search.ranking import Ranking, candidates, final_ranking
from kdnas.search.study import Study


@dataclass(frozen=True)
class SearchSettings:
    """The size of a search. A job is run again, `retries` times, if its process dies, but not if it raises an error."""

    episodes: int
    candidates: int  # of one episode
    finalists: int  # the number of best candidates that are distilled in full at the end
    gang: int = 1  # the number of candidates that one job trains together, on one forward pass of the teacher
    retries: int = 1
    max_failed: float = 0.5  # the share of candidates that may fail before the search gives up

    def __post_init__(self) -> None:
        for name, least in (("episodes", 1), ("candidates", 1), ("finalists", 0), ("gang", 1), ("retries", 0)):
            require_whole(name, getattr(self, name), least)
        share = is_number(self.max_failed) and 0 <= self.max_failed <= 1
        require(share, "max_failed", self.max_failed, "from 0 to 1")


@dataclass(frozen=True)
class Search:
    """The state that a schedule decides from, and the place to add trials to."""

    settings: SearchSettings
    studies: Mapping[str, Study]  # by the kind of their jobs: `mini`, `full`, and the others that the schedule runs
    proposer: Proposer
    ranking: Ranking

    @property
    def mini(self) -> Study:
        """The candidates, scored by mini-KD."""
        return self.studies["mini"]

    @property
    def full(self) -> Study:
        """The finalists, distilled in full."""
        return self.studies["full"]

    def propose(self, episode: int) -> None:
        """Adds the candidates of an episode to `mini`, unless they are there."""
        self.proposer.propose(self.mini, self.settings.candidates, episode, self.settings.gang)

    def best(self) -> list[Observation]:
        """Returns the finished candidates, the best by mini-KD first; raises a ConfigError if there is none."""
        if found := self.ranking.order(candidates(self.mini)):
            return [one.mini for one in found]
        raise ConfigError(f"search: none of {len(self.mini.trials())} candidates finished; {reasons(self.mini)}")

    def promote(
        self, seen: Observation, rung: int = 0, fidelity: Mapping[str, Any] | None = None, kind: str = "full"
    ) -> None:
        """Adds a candidate to the study of a kind of job, unless it is there with these settings and has not failed.

        Args:
            seen: the candidate's observation by mini-KD.
            rung: how many longer trainings the candidate has had before.
            fidelity: settings of this training alone, nested as in a config: `{"trainer": {"max_epochs": 2}}`.
        """
        study = self.studies[kind]
        attributes = {"episode": rung, "origin": seen.origin, "candidate": seen.trial}
        attributes |= {"fidelity": dict(fidelity)} if fidelity else {}
        there = study.counted(TrialState.RUNNING, TrialState.COMPLETE)
        if _training(attributes) not in (_training(trial.user_attrs) for trial in there):
            study.add(seen.architecture, attributes, self.proposer.distributions)

    def corrections(self) -> list[Job]:
        """Returns the job that measures again what was measured on a busy host; none if there is nothing to correct."""
        busy = any(study.busy for study in self.studies.values())
        return [Job("latency", search=self.mini.search or "")] if busy else []

    def conclude(self) -> None:
        """Stores the final order: the search has finished."""
        self.mini.order = [one.mini.trial for one in final_ranking(self.ranking, self.mini, self.full)]


def _training(attributes: Mapping[str, Any]) -> str:
    """Returns, from a trial's attributes, what tells the trainings of promoted candidates apart."""
    return json.dumps([attributes.get(name) for name in ("candidate", "episode", "fidelity")], sort_keys=True)


def reasons(study: Study) -> str:
    """Summarizes why trials failed, with counts, the most frequent reason first."""
    failed = [trial.user_attrs.get("reason", "unknown") for trial in study.counted(TrialState.FAIL)]
    counted = sorted({reason: failed.count(reason) for reason in failed}.items(), key=lambda item: -item[1])
    return "; ".join(f"{count} x {reason}" for reason, count in counted) or "none failed"
