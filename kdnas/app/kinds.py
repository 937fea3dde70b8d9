"""The kinds of jobs, a table in the config: `search.stages.<kind>` has what a kind runs and the settings it changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import hydra.utils
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdnas.base.config import flatten, plain
from kdnas.base.errors import ConfigError, require
from kdnas.search.job import Job

if TYPE_CHECKING:
    from kdnas.search.study import Study

Work = Callable[["DictConfig", Job, "Study | None"], dict[str, float]]
"""The function of a kind of job: from the config, the job and, if it has trials, the study to report them to, it
returns the first student's held-out metrics, or nothing."""
TARGET = "_target_"


def work_of(cfg: DictConfig, job: Job) -> Work:
    """Returns the function that jobs of this kind run; raises a ConfigError if there is none that can be imported."""
    target = _kind(cfg, job.kind).get(TARGET)
    try:
        return hydra.utils.get_method(target)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"search.stages.{job.kind}.{TARGET}={target}: {' '.join(str(error).split())}") from error


def changed_keys(cfg: DictConfig, kind: str) -> dict[str, object]:
    """Returns the settings that a kind of job changes, with their new values, by dotted key."""
    stage = plain(_kind(cfg, kind))
    return flatten({name: value for name, value in stage.items() if name != TARGET})


def staged(cfg: DictConfig, job: Job) -> DictConfig:
    """Returns a config with the settings of a job's kind, then those of its own; a ConfigError refuses unknown ones."""
    own = {"architectures": [one.to_dict() for one in job.architectures]} if job.architectures else {}
    named = {"title": job.title} if job.title else {}
    stage = _kind(cfg, job.kind)
    for place, settings in (
        (f"search.stages.{job.kind}", OmegaConf.masked_copy(stage, [str(name) for name in stage if name != TARGET])),
        ("job.fidelity", job.fidelity),
        ("job", own | named),
    ):
        try:
            cfg = OmegaConf.merge(cfg, settings)  # type: ignore[assignment]
        except OmegaConfBaseException as error:
            raise ConfigError(
                f"{place}.{error.full_key}: not a setting of the chosen configs ({str(error).splitlines()[0]})"
            ) from error
    return cfg


def _kind(cfg: DictConfig, kind: str) -> DictConfig:
    known = cfg.search.stages or {}
    require(kind in known, "job.kind", kind, f"one of {', '.join(map(str, known))}")
    fits = isinstance(known[kind], DictConfig) and isinstance(known[kind].get(TARGET), str)
    require(fits, f"search.stages.{kind}", known[kind], f"a mapping with the {TARGET} of the function to run")
    return known[kind]
