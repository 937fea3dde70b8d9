"""Logs the result of each candidate and finalist in a line."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from optuna.trial import FrozenTrial, TrialState

from kdnas.base.screen import duration
from kdnas.models.architecture import Architecture
from kdnas.search.loop import ENDED, SearchSettings
from kdnas.search.study import Observation, Study

log = logging.getLogger(__name__)


class Narrator:
    """Logs each candidate that ends: the progress of the search, its metrics and latency, and the time left.

    Args:
        settings: the size of the search.
        say: logs a line.
    """

    def __init__(self, settings: SearchSettings, say: Callable[[str], None] = log.info) -> None:
        self.settings, self.say = settings, say
        self.told: set[int] = set()
        self.learns = False
        self.best: FrozenTrial | None = None
        self.before = 0
        self.start = time.monotonic()

    @property
    def total(self) -> int:
        """The number of candidates of the search."""
        return self.settings.episodes * self.settings.candidates

    @property
    def what(self) -> str:
        """The name of the work, for the display."""
        return "candidates"

    @property
    def standing(self) -> str:
        """The number of trials that have ended, and the best reward so far."""
        best = f", best reward {self.best.value:.4f}" if self.best else ""
        return f"{len(self.told)} of {self.total} have ended{best}"

    def skip(self, study: Study) -> None:
        """Marks the trials that ended in an earlier run as logged."""
        if ended := self._ended(study):
            self.say(f"going on with {len(ended)} {self.what} that have ended before")
        self.before = len(ended)

    def narrate(self, study: Study) -> None:
        """Logs a line for every trial that has ended since the last call, and once that training works."""
        self._first_epoch(study)
        for trial in self._ended(study):
            failed = trial.state != TrialState.COMPLETE
            told = f"failed: {trial.user_attrs.get('reason', 'unknown')}" if failed else self._line(trial)
            self.say(f"{self._name(trial)} {Architecture.of(trial.params)}: {told}")

    def _first_epoch(self, study: Study) -> None:
        """Logs the first held-out result of all trials: the first candidates can take long to end."""
        for trial in () if self.learns else study.trials(TrialState.RUNNING):
            if trial.intermediate_values and not self.learns:
                epoch, value = min(trial.intermediate_values.items())
                self.say(f"the first of the {self.what}: epoch {epoch}, validation {value:.4g}")
                self.learns = True

    def _ended(self, study: Study) -> list[FrozenTrial]:
        """Returns the trials that have ended since the last call, and updates the best trial."""
        ended = [trial for trial in study.current(*ENDED) if trial.number not in self.told]
        self.told |= {trial.number for trial in ended}
        complete = [trial for trial in (self.best, *ended) if trial and trial.state == TrialState.COMPLETE]
        self.best = max(complete, key=lambda trial: (trial.value, -trial.number), default=None)
        return ended

    def _name(self, trial: FrozenTrial) -> str:
        episode = trial.user_attrs["episode"]
        episodes = max(self.settings.episodes, episode + 1)  # a resumed search may have fewer episodes than before
        return f"episode {episode + 1}/{episodes}, trial {trial.number} ({len(self.told)} of {self.total})"

    def _line(self, trial: FrozenTrial) -> str:
        assert self.best is not None
        best = "best so far" if trial.number == self.best.number else f"best {self.best.value:.4f}"
        return f"{figures(Observation.of(trial))}, reward {trial.value:.4f} ({best}); {self._left()}"

    def _left(self) -> str:
        done = len(self.told) - self.before
        seconds = (time.monotonic() - self.start) / max(done, 1) * (self.total - len(self.told))
        return f"about {duration(seconds)} of candidates left" if seconds else "the last candidate"


class FinalistNarrator(Narrator):
    """Logs each finalist that ends, with its rewards after the full distillation and after mini-KD.

    Args:
        settings, say: see `Narrator`.
        candidates: the study of the candidates that the finalists were chosen from.
    """

    def __init__(self, settings: SearchSettings, candidates: Study, say: Callable[[str], None] = log.info) -> None:
        super().__init__(settings, say)
        self.candidates = candidates

    @property
    def total(self) -> int:
        return self.settings.finalists

    @property
    def what(self) -> str:
        return "finalists"

    def _name(self, trial: FrozenTrial) -> str:
        return f"finalist {len(self.told)} of {max(self.total, len(self.told))}, trial {trial.user_attrs['candidate']}"

    def _line(self, trial: FrozenTrial) -> str:
        before = Observation.of(self.candidates.trial(trial.user_attrs["candidate"]))
        return f"{figures(Observation.of(trial))}, reward {trial.value:.4f} (after mini-KD {before.reward:.4f})"


def figures(seen: Observation) -> str:
    """Formats the held-out metrics, the deciding one first, and the latencies."""
    latency: Mapping = dict(seen.cost.latency) if seen.cost else {}
    parts = [f"{name} {seen.metrics[name]:.4f}" for name in sorted(seen.metrics, key=lambda name: name == "loss")]
    parts += [f"{one.median:.2f} ms on {device}{' (busy)' * one.busy}" for device, one in latency.items()]
    return ", ".join(parts)
