"""The lines in the log about each trial that ends."""

import logging
import time
from collections.abc import Callable, Mapping

from optuna.trial import FrozenTrial, TrialState

from kdnas.base.metrics import LOSS
from kdnas.base.screen import duration
from kdnas.models.architecture import Architecture
from kdnas.search.loop import ENDED
from kdnas.search.observation import Observation
from kdnas.search.search import Search

log = logging.getLogger(__name__)
NOUNS = {"mini": "candidates", "full": "finalists"}
"""The plural name of a kind of job's trials in log lines."""


class TrialLog:
    """Logs each trial that ends, of the `total` expected ones of a kind of job: its metrics, latency and reward."""

    def __init__(self, search: Search, kind: str, total: int, write: Callable[[str], None] = log.info) -> None:
        self.search, self.kind, self.total, self.write = search, kind, total, write
        self.study, self.noun = search.studies[kind], NOUNS.get(kind, f"trials of {kind}")
        self.logged: set[int] = set()  # the numbers of the trials that need no line any more
        self.learns = False
        self.best: FrozenTrial | None = None
        self.before = 0
        self.start = time.monotonic()

    @property
    def summary(self) -> str:
        best = f", best reward {self.best.value:.4f}" if self.best else ""
        return f"{len(self.logged)} of {self.total} have ended{best}"

    def skip_ended(self) -> None:
        """Leaves out the trials that ended in an earlier run."""
        if ended := self._ended():
            self.write(f"{len(ended)} {self.noun} ended in an earlier run; going on with the rest")
        self.before = len(ended)

    def log_ended(self) -> None:
        """Logs a line for every trial that has ended since the last call, and one when the first epoch has ended."""
        self._first_epoch()
        for trial in self._ended():
            failed = trial.state != TrialState.COMPLETE
            result = f"failed: {trial.user_attrs.get('reason', 'unknown')}" if failed else self._result(trial)
            self.write(f"{self._name(trial)} {Architecture.of(trial.params)}: {result}")

    def _first_epoch(self) -> None:
        """Logs the first held-out result of all trials: the first candidates can take long to end."""
        for trial in () if self.learns else self.study.trials(TrialState.RUNNING):
            if trial.intermediate_values and not self.learns:
                epoch, value = min(trial.intermediate_values.items())
                self.write(f"the first of the {self.noun}: epoch {epoch}, validation {value:.4g}")
                self.learns = True

    def _ended(self) -> list[FrozenTrial]:
        ended = [trial for trial in self.study.counted(*ENDED) if trial.number not in self.logged]
        self.logged |= {trial.number for trial in ended}
        self.total = max(self.total, len(self.logged))  # a resumed search may have fewer candidates than before
        complete = [trial for trial in (self.best, *ended) if trial and trial.state == TrialState.COMPLETE]
        self.best = max(complete, key=lambda trial: (trial.value, -trial.number), default=None)
        return ended

    def _name(self, trial: FrozenTrial) -> str:
        return f"{self.kind} {len(self.logged)} of {self.total}, trial {trial.number}"

    def _result(self, trial: FrozenTrial) -> str:
        return f"{measured(Observation.of(trial))}, reward {trial.value:.4f}"


class CandidateLog(TrialLog):
    """Logs each candidate that ends, with its episode, the best reward so far, and the time left."""

    def _name(self, trial: FrozenTrial) -> str:
        episode = trial.user_attrs["episode"]
        episodes = max(self.search.settings.episodes, episode + 1)
        return f"episode {episode + 1}/{episodes}, trial {trial.number} ({len(self.logged)} of {self.total})"

    def _result(self, trial: FrozenTrial) -> str:
        assert self.best is not None
        best = "best so far" if trial.number == self.best.number else f"best {self.best.value:.4f}"
        return f"{super()._result(trial)} ({best}); {self._left()}"

    def _left(self) -> str:
        done = len(self.logged) - self.before
        seconds = (time.monotonic() - self.start) / max(done, 1) * (self.total - len(self.logged))
        return f"about {duration(seconds)} left for the candidates" if seconds else "the last candidate"


class FinalistLog(TrialLog):
    """Logs each finalist that ends, with its rewards after the full distillation and after mini-KD."""

    def _name(self, trial: FrozenTrial) -> str:
        return f"finalist {len(self.logged)} of {self.total}, trial {trial.user_attrs['candidate']}"

    def _result(self, trial: FrozenTrial) -> str:
        before = Observation.of(self.search.mini.trial(trial.user_attrs["candidate"]))
        return f"{super()._result(trial)} (after mini-KD {before.reward:.4f})"


LOGS: Mapping[str, type[TrialLog]] = {"mini": CandidateLog, "full": FinalistLog}
"""The logs of kinds of jobs; other kinds have a plain `TrialLog`."""


def measured(seen: Observation) -> str:
    """Formats an observation's held-out metrics, the deciding one first, and its latencies."""
    latency: Mapping = dict(seen.cost.latency) if seen.cost else {}
    parts = [f"{name} {seen.metrics[name]:.4f}" for name in sorted(seen.metrics, key=lambda name: name == LOSS)]
    parts += [f"{one.median:.2f} ms on {device}{' (busy)' * one.busy}" for device, one in latency.items()]
    return ", ".join(parts)
