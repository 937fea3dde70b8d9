"""The latency job of a search: repeats what was measured on a busy host, and computes the rewards anew."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig
from optuna.study import get_all_study_names
from transformers import PreTrainedConfig

from kdnas.app.jobs import open_study
from kdnas.base.config import instantiate
from kdnas.base.errors import mounted
from kdnas.costs.cost import Cost
from kdnas.models.loading import load_config
from kdnas.models.resizing import StudentFamily, student_config
from kdnas.search.job import Job
from kdnas.search.journal import open_storage
from kdnas.search.observation import Observation
from kdnas.search.reward import Reward
from kdnas.search.study import Study

log = logging.getLogger(__name__)
MUCH = 0.1
"""The relative difference from the earlier latency above which a line is logged."""


def remeasure(cfg: DictConfig, job: Job, study: Study | None) -> dict[str, float]:
    """Corrects the costs and rewards of all trials of a search."""
    costs = instantiate(cfg.latency)
    for kind in get_all_study_names(open_storage(Path(cfg.search.dir))):
        measured = open_study(cfg, replace(job, kind=kind))
        with mounted("latency"):
            teacher, family = load_config(cfg.teacher.path), instantiate(cfg.module.student)
            correct_costs(measured, teacher, costs.cost, instantiate(cfg.reward), family)
    return {}


def correct_costs(
    study: Study,
    teacher: PreTrainedConfig,
    cost: Callable[[PreTrainedConfig], Cost],
    reward: Reward,
    family: StudentFamily | None = None,
) -> None:
    """Measures again, by `cost`, a study's teacher and candidates that were measured on a busy host; corrects rewards.

    Candidates are of a `family`, None for the teacher's. Costs stay as they are while the host is still busy.
    """
    if study.teacher and study.teacher.busy:
        study.teacher = cost(teacher)
    for seen in study.observations:
        if not (seen.estimated and seen.cost and study.teacher):
            continue
        measured = cost(student_config(teacher, seen.architecture, family)) if seen.cost.busy else seen.cost
        if not measured.busy:
            with mounted("reward"):
                value = reward(seen.metrics, measured, study.teacher)
            study.correct(seen.trial, measured, value, estimated=study.teacher.busy)
            _log_difference(seen, measured, value)


def _log_difference(seen: Observation, measured: Cost, reward: float) -> None:
    assert seen.cost is not None
    for device, latency in measured.latency.items():
        earlier = seen.cost.latency[device].median
        if abs(latency.median - earlier) > MUCH * latency.median:
            log.info(
                "%s takes %.2f ms on %s, not %.2f (the host was busy then); its reward is %.4f, not %.4f",
                *(seen.architecture, latency.median, device, earlier, reward, seen.reward),
            )
