"""The lines in the log about each training of an evaluation of proxies that ends."""

from typing import Any

from optuna.trial import FrozenTrial

from kdnas.search.proxy_grid import proxy_of
from kdnas.search.trial_log import TrialLog

NOUNS = {"mini": "short trainings", "full": "full distillations"}


class ProxyLog(TrialLog):
    """Logs each training that ends, with its proxy. Rewards of different proxies do not compare: none is the best."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.noun = NOUNS[self.kind]

    @property
    def summary(self) -> str:
        return f"{len(self.logged)} of {self.total} have ended"

    def _name(self, trial: FrozenTrial) -> str:
        return f"{self.noun}, {len(self.logged)} of {self.total}: {proxy_of(trial) or 'in full'}, trial {trial.number}"
