"""Repeats, at the end of a search, the latency measurements that it made on a busy host."""

from __future__ import annotations

import logging
from collections.abc import Callable

from transformers import PreTrainedConfig

from kdnas.models import student_config
from kdnas.search.study import Cost, Observation, Study

log = logging.getLogger(__name__)
MUCH = 0.1
"""The relative difference from the earlier latency above which a line is logged."""


def measure_again(study: Study, teacher: PreTrainedConfig, cost: Callable[[PreTrainedConfig], Cost]) -> None:
    """Corrects the costs, of the teacher and of finished candidates, that were measured on a busy host.

    Args:
        teacher: the teacher's config.
        cost: measures a model of the given config. Costs stay as they are while the host is still busy.
    """
    if study.teacher and study.teacher.busy:
        study.teacher = cost(teacher)
    for seen in study.observations:
        if seen.cost and seen.cost.busy:
            measured = cost(student_config(teacher, seen.architecture))
            if not measured.busy:
                study.correct(seen.trial, measured)
                _tell(seen, measured)


def _tell(seen: Observation, measured: Cost) -> None:
    assert seen.cost is not None
    for device, latency in measured.latency.items():
        earlier = seen.cost.latency[device].median
        if abs(latency.median - earlier) > MUCH * latency.median:
            log.info(
                "%s takes %.2f ms on %s, not the %.2f that its reward (%.4f) was computed with: the host was busy then",
                *(seen.architecture, latency.median, device, earlier, seen.reward),
            )
