"""A search space that is derived from the teacher: its depths, widths, heads and ratios, never more parameters."""

import math
from collections.abc import Sequence
from typing import Any

from kdnas.base.errors import is_number, require, require_whole
from kdnas.models.architecture import Architecture
from kdnas.models.families import architecture_of
from kdnas.models.loading import load_config
from kdnas.models.resizing import StudentFamily
from kdnas.models.space import Constraint, SearchSpace, WithinTeacher, check_values


class FeedForwardRatios:
    """A constraint: the feed-forward size is the hidden size times one of some ratios, rounded."""

    def __init__(self, ratios: Sequence[float]) -> None:
        self.ratios = tuple(ratios)

    def sizes(self, hidden_size: int) -> set[int]:
        return {max(1, round(ratio * hidden_size)) for ratio in self.ratios}

    def __call__(self, architecture: Architecture) -> bool:
        return architecture.intermediate_size in self.sizes(architecture.hidden_size)


def within_teacher(
    teacher: str,
    student: StudentFamily | None = None,
    depths: int = 6,
    widths: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    ratios: Sequence[float] = (0.5, 0.75, 1.0),
    **dimensions: Sequence[Any] | None,
) -> SearchSpace:
    """Makes the space of a teacher's smaller relatives (the ADLS report's rule: never more parameters).

    The number of heads is a divisor of the teacher's above 1, and a hidden size is a multiple of the teacher's heads,
    so that every number of heads goes with every hidden size.

    Args:
        teacher: a path or hub id.
        student: the family of the students; None for the teacher's.
        depths: the most numbers of layers, evenly spaced from the teacher's downwards.
        widths: hidden sizes, as shares of the teacher's.
        ratios: ratios of feed-forward to hidden size, as shares of the teacher's ratio.
        dimensions: lists of values by dimension, in place of derived ones; None derives them.
    """
    require_whole("depths", depths, 1)
    for name, shares in (("widths", widths), ("ratios", ratios)):
        listed = isinstance(shares, Sequence) and not isinstance(shares, str)
        fits = listed and bool(shares) and all(is_number(share) and 0 < share <= 1 for share in shares)
        require(fits, name, shares, "a list of shares of the teacher's, above 0 and at most 1")
    given = {name: values for name, values in dimensions.items() if values is not None}
    for name, values in given.items():
        check_values(name, values)
    own = architecture_of(load_config(teacher))
    layers, heads = own.num_hidden_layers, own.num_attention_heads
    unit = heads * (1 if own.hidden_size // heads % 2 else 2)  # rotary positions want heads of an even size
    sizes = given.get("hidden_size") or sorted({max(unit, round(s * own.hidden_size / unit) * unit) for s in widths})
    ratio = FeedForwardRatios([share * own.intermediate_size / own.hidden_size for share in ratios])
    derived: dict[str, Sequence[Any]] = {
        "num_hidden_layers": sorted({math.ceil(layers * i / depths) for i in range(1, depths + 1)}),
        "num_attention_heads": [n for n in range(min(2, heads), heads + 1) if heads % n == 0],
        "hidden_size": sizes,
        "intermediate_size": sorted(set().union(*map(ratio.sizes, sizes))),
        "hidden_act": [own.hidden_act],
    }
    constraints: list[Constraint] = [WithinTeacher(teacher, parameters=True, student=student)]
    if "intermediate_size" not in given:
        constraints.insert(0, ratio)
    return SearchSpace(**(derived | given), constraints=constraints)
