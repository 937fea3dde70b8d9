"""Constraints on a search space: each says of an architecture whether it belongs."""

from __future__ import annotations

from functools import cache, lru_cache

from transformers import PreTrainedConfig

from kdnas.models.architecture import Architecture
from kdnas.models.counting import count_parameters
from kdnas.models.families import architecture_of
from kdnas.models.loading import load_config
from kdnas.models.resizing import student_config


class WithinTeacher:
    """No more layers and, optionally, no more parameters than the teacher has.

    Args:
        teacher: the teacher's path or hub id.
        parameters: whether to exclude students with more parameters than the teacher.
    """

    def __init__(self, teacher: str, parameters: bool = False) -> None:
        self.path = teacher
        self.parameters = parameters

    def __call__(self, architecture: Architecture) -> bool:
        teacher = architecture_of(_config(self.path))
        if architecture.num_hidden_layers > teacher.num_hidden_layers:
            return False
        return not self.parameters or self._count(architecture) <= self._count(teacher)

    def _count(self, of: Architecture) -> int:
        return _parameters(self.path, of.num_hidden_layers, of.hidden_size, of.intermediate_size)


@lru_cache(maxsize=8)
def _config(path: str) -> PreTrainedConfig:
    return load_config(path)


@cache
def _parameters(path: str, num_hidden_layers: int, hidden_size: int, intermediate_size: int) -> int:
    """Counts a student's parameters, which depend on neither its number of heads nor its activation."""
    architecture = Architecture(num_hidden_layers, 1, hidden_size, intermediate_size, "gelu")
    return count_parameters(student_config(load_config(path), architecture))
