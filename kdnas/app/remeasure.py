"""The latency job of a search: repeats the measurements that were made on a busy host."""

from __future__ import annotations

from dataclasses import replace

from omegaconf import DictConfig

from kdnas.app.corrections import correct_costs
from kdnas.app.jobs import open_study
from kdnas.base.config import instantiate
from kdnas.base.errors import mounted
from kdnas.models.loading import load_config
from kdnas.search.job import Job
from kdnas.search.study import Study


def remeasure(cfg: DictConfig, job: Job, study: Study | None) -> dict[str, float]:
    """Corrects the costs and rewards of the candidates and of the finalists of a search."""
    costs = instantiate(cfg.latency)
    for kind in ("mini", "full"):
        measured = open_study(cfg, replace(job, kind=kind))
        with mounted("latency"):
            correct_costs(measured, load_config(cfg.teacher.path), costs.cost, instantiate(cfg.reward))
    return {}
