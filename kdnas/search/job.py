"""A job of a search: what the sweeper asks of a worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kdnas.models.architecture import Architecture


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        kind: what is done: `mini` (mini-KD of candidates), `full` (the full distillation of finalists), `latency`
            (measuring again what was measured on a busy host) or `prepare`.
        trials: the numbers of the trials that the job trains together.
        architectures: the architecture of each trial.
        search: the name of the search, so that a job of another search cannot report to it.
        fidelity: settings of this job alone, by dotted key, as `trainer.max_epochs`.
    """

    kind: str
    trials: tuple[int, ...] = ()
    architectures: tuple[Architecture, ...] = ()
    search: str = ""
    fidelity: Mapping[str, Any] = field(default_factory=dict)
