"""Controllers: what chooses a search's candidates.

A controller is any factory of Optuna samplers that takes a seed; a config in `conf/controller` names it. `feedback.py`
is the papers' own controller. Random search, TPE, Gaussian processes and NSGA-II are Optuna's, named in their configs.
"""

from collections.abc import Callable

from optuna.samplers import BaseSampler

ControllerFactory = Callable[..., BaseSampler]
"""Makes a sampler: `controller(seed=0)`."""
