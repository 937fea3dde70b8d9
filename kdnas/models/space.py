"""The search space: lists of values by dimension, and constraints."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property, lru_cache
from random import Random
from typing import Any

from transformers import PreTrainedConfig

from kdnas.base.errors import ConfigError, require
from kdnas.models.architecture import Architecture
from kdnas.models.counting import count_parameters
from kdnas.models.families import architecture_of
from kdnas.models.loading import load_config
from kdnas.models.resizing import StudentFamily, student_config

ENUMERABLE = 100_000
"""The most points of a space that is listed; larger ones are only sampled."""

Constraint = Callable[[Architecture], bool]


def check_values(name: str, values: Any) -> None:
    """Refuses (by a ConfigError) what is no list of a dimension's values, or has none or one repeatedly."""
    fits = isinstance(values, Sequence) and not isinstance(values, str)
    require(fits, name, values, f"a list, as [{values}]")
    if name == "hidden_act":
        what, fits = "names", all(isinstance(value, str) for value in values)
    else:
        what, fits = "whole numbers from 1", all(isinstance(value, int) and value > 0 for value in values)
    fits = fits and 0 < len(values) == len(set(values))
    require(fits, name, list(values), f"a list of one or more different {what}")


class SearchSpace:
    """All architectures of listed values, less what the constraints exclude.

    Args:
        constraints: each returns whether an architecture belongs to the space. Heads that do not divide the hidden
            size never do.

    Raises:
        ConfigError: an empty dimension, a repeated value, or a space with nothing in it.
    """

    def __init__(
        self,
        num_hidden_layers: Sequence[int],
        num_attention_heads: Sequence[int],
        hidden_size: Sequence[int],
        intermediate_size: Sequence[int],
        hidden_act: Sequence[str],
        constraints: Sequence[Constraint] = (),
    ) -> None:
        listed: dict[str, Sequence[Any]] = {
            "num_hidden_layers": num_hidden_layers,
            "num_attention_heads": num_attention_heads,
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "hidden_act": hidden_act,
        }
        for name, values in listed.items():
            check_values(name, values)
        self.dimensions = {name: tuple(values) for name, values in listed.items()}
        self.constraints = tuple(constraints)
        self.grid_size = math.prod(len(values) for values in self.dimensions.values())
        if self.enumerable and not self.members:
            raise ConfigError(f"space: none of its {self.grid_size} architectures meets the constraints")

    @property
    def enumerable(self) -> bool:
        return self.grid_size <= ENUMERABLE

    @cached_property
    def members(self) -> tuple[Architecture, ...]:
        """Every architecture of an enumerable space, in the grid's order."""
        return tuple(self._enumerate())

    @property
    def size(self) -> int:
        """The number of members, or of the grid's points where there are too many to list."""
        return len(self.members) if self.enumerable else self.grid_size

    @cached_property
    def reachable(self) -> dict[str, tuple[Any, ...]]:
        """The dimensions without the values that no member of an enumerable space has."""
        if not self.enumerable:
            return self.dimensions
        used = {name: {getattr(member, name) for member in self.members} for name in self.dimensions}
        return {
            name: tuple(value for value in values if value in used[name]) for name, values in self.dimensions.items()
        }

    @property
    def example(self) -> Architecture:
        return self.members[0] if self.enumerable else self.sample(Random(0), besides=set())

    def _enumerate(self) -> Iterator[Architecture]:
        for values in itertools.product(*self.dimensions.values()):
            candidate = self._admit(dict(zip(self.dimensions, values, strict=True)))
            if candidate is not None:
                yield candidate

    def _admit(self, values: dict[str, Any]) -> Architecture | None:
        if values["hidden_size"] % values["num_attention_heads"]:
            return None
        candidate = Architecture(**values)
        return candidate if all(allows(candidate) for allows in self.constraints) else None

    def __contains__(self, candidate: Architecture | None) -> bool:
        if candidate is None:
            return False
        values = candidate.to_dict()
        return all(values[name] in allowed for name, allowed in self.dimensions.items()) and (
            self._admit(values) is not None
        )

    def sample(self, rng: Random, besides: set[Architecture]) -> Architecture:
        """Returns a uniformly random member that is not in `besides`.

        Raises:
            LookupError: there is none left (or, in a space too large to list, none was found).
        """
        if self.enumerable:
            left = [member for member in self.members if member not in besides]
            if left:
                return rng.choice(left)
        else:
            for _ in range(10_000):
                drawn = self._admit({name: rng.choice(values) for name, values in self.dimensions.items()})
                if drawn is not None and drawn not in besides:
                    return drawn
        raise LookupError("the search space holds no further architecture")


class WithinTeacher:
    """A constraint: no more layers and, with `parameters`, no more parameters than the teacher (a path or hub id).

    Args:
        student: the family of the students; None for the teacher's.
    """

    def __init__(self, teacher: str, parameters: bool = False, student: StudentFamily | None = None) -> None:
        self.path = teacher
        self.parameters = parameters
        self.student = student or StudentFamily()

    def __call__(self, architecture: Architecture) -> bool:
        teacher = architecture_of(_config(self.path))
        if architecture.num_hidden_layers > teacher.num_hidden_layers:
            return False
        return not self.parameters or self._count(architecture, self.student) <= self._count(teacher, StudentFamily())

    def _count(self, of: Architecture, family: StudentFamily) -> int:
        return _parameters(self.path, of.num_hidden_layers, of.hidden_size, of.intermediate_size, family)


@lru_cache(maxsize=8)
def _config(path: str) -> PreTrainedConfig:
    return load_config(path)


@cache
def _parameters(path: str, layers: int, hidden_size: int, intermediate_size: int, family: StudentFamily) -> int:
    architecture = Architecture(layers, 1, hidden_size, intermediate_size, "gelu")
    return count_parameters(student_config(_config(path), architecture, family))
