"""Measures again, when a search ends, what it measured while the host was busy."""

from __future__ import annotations

import logging
from collections.abc import Callable

from transformers import PreTrainedConfig

from kdnas.models import student_config
from kdnas.search.study import Cost, Observation, Study

log = logging.getLogger(__name__)
MUCH = 0.1
"""The share by which a latency has to differ from the earlier one to be worth a line."""


def measure_again(study: Study, teacher: PreTrainedConfig, cost: Callable[[PreTrainedConfig], Cost]) -> None:
    """Corrects the costs of a study that are of a busy host, those of the teacher and of finished candidates.

    Args:
        teacher: its config.
        cost: measures a model of a config; what the host is still too busy for stays as it is.
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
                "%s takes %.2f ms on %s, not the %.2f that its reward (%.4f) is of: the host was busy then",
                *(seen.architecture, latency.median, device, earlier, seen.reward),
            )
