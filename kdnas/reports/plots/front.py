"""Which points no other point beats."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """The indices of the points that no other point beats, both values minimised, by rising first value.

    A point is beaten by one that is no worse in both and better in one: equal points stand or fall together. Points
    with a NaN are left out.
    """
    front: list[int] = []
    numbers = [index for index, point in enumerate(points) if not any(map(math.isnan, point))]
    for index in sorted(numbers, key=lambda index: points[index]):
        if not front or points[index][1] < points[front[-1]][1] or points[index] == points[front[-1]]:
            front.append(index)
    return front
