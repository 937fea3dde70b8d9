"""A job of a search: the typed message that the sweeper writes as one override, and that a worker reads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from kdnas.base.config import LONGEST, override, plain
from kdnas.base.errors import ConfigError, require, shown
from kdnas.models.architecture import Architecture

TITLES = {"mini": "trial", "full": "finalist"}
"""The name of a kind of job's trial in log lines; other kinds go by their own names."""


@dataclass(frozen=True)
class Job:
    """The purpose of one run. A run that a user starts is a job too: of the kind `full`, without trials."""

    kind: str  # a key of `search.stages`, the table of what jobs run and of the settings that they change
    trials: tuple[int, ...] = ()  # the numbers of the trials that the job trains and reports to the study
    architectures: tuple[Architecture, ...] = ()  # the students, one for each trial; empty for the config's own
    search: str = ""  # the id of the search whose study the job reports to
    fidelity: Mapping[str, Any] = field(default_factory=dict)
    """The settings that this job alone changes, nested as in a config: `{"trainer": {"max_epochs": 2}}`."""

    @property
    def name(self) -> str:
        """The job's folder, below the search folder: `mini/0000+0001`."""
        return f"{self.kind}/{named(self.trials)}" if self.trials else self.kind

    @property
    def title(self) -> str:
        """The trials in words, for log lines: "trial 0-2"; empty for a job without trials."""
        return f"{TITLES.get(self.kind, self.kind)} {spans(self.trials)}" if self.trials else ""

    def to_override(self) -> str:
        """Returns the job as an override, `job={...}`. Behind a user's own overrides it repeats the job by hand."""
        values: dict[str, Any] = {"name": self.name, "kind": self.kind, "trials": list(self.trials)}
        values["architectures"] = [architecture.to_dict() for architecture in self.architectures]
        values |= {"search": self.search, "fidelity": dict(self.fidelity)}
        return override("job", {name: value for name, value in values.items() if value})

    @classmethod
    def of(cls, cfg: DictConfig) -> Job:
        """Reads the job of a config; raises a ConfigError if `job` is not a job."""
        return cls._from(plain(cfg.job))

    @classmethod
    def in_overrides(cls, overrides: Sequence[str]) -> Job | None:
        """Reads the job from a command line; returns None if there is none."""
        words = [word for word in overrides if word.startswith("job=")]
        return cls._from(OverridesParser.create().parse_override(words[-1]).value()) if words else None

    @classmethod
    def _from(cls, values: Any) -> Job:
        if not isinstance(values, Mapping) or "kind" not in values:
            raise ConfigError(f"job={shown(values)}: must be a mapping with a kind")
        trials, architectures = values.get("trials") or (), values.get("architectures") or ()
        fidelity = values.get("fidelity") or {}
        require(isinstance(fidelity, Mapping), "job.fidelity", fidelity, "a mapping of settings")
        fits = isinstance(trials, Sequence) and all(isinstance(number, int) and number >= 0 for number in trials)
        require(fits, "job.trials", trials, "a list of trial numbers")
        fits = not trials or len(trials) == len(architectures)
        require(fits, "job.architectures", architectures, f"one for each trial of {list(trials)}")
        return cls(
            kind=str(values["kind"]),
            trials=tuple(trials),
            architectures=tuple(map(Architecture.of, architectures)),
            search=str(values.get("search") or ""),
            fidelity=fidelity,
        )


def named(numbers: Sequence[int]) -> str:
    """Returns the folder name of a job with these trials: 0000+0001, or 0000-0059 where that would be too long."""
    name = "+".join(f"{number:04d}" for number in numbers)
    if len(name) > LONGEST:
        name = spans(numbers, 4)
    if len(name) > LONGEST:  # many gaps, as members of a gang were run alone
        name = f"{min(numbers):04d}-{max(numbers):04d}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name


def spans(numbers: Sequence[int], digits: int = 1) -> str:
    """Formats numbers in order, with runs of three or more as ranges: 0-59+61."""
    pairs = enumerate(sorted(numbers))
    runs = [[number for _, number in run] for _, run in groupby(pairs, lambda pair: pair[1] - pair[0])]
    texts = [[f"{number:0{digits}d}" for number in run] for run in runs]
    return "+".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else "+".join(run) for run in texts)
