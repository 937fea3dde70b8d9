"""The Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Returns the indices of the points on the Pareto front, both values minimised, by rising first value.

    A point is dominated by one that is no worse in both values and better in one, so equal points are both on the
    front or neither. Points with a NaN are left out.
    """
    front: list[int] = []
    numbers = [index for index, point in enumerate(points) if not any(map(math.isnan, point))]
    for index in sorted(numbers, key=lambda index: points[index]):
        if not front or points[index][1] < points[front[-1]][1] or points[index] == points[front[-1]]:
            front.append(index)
    return front
