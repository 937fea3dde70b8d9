"""Names of a search's jobs, from the numbers of their trials."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from kdnas.base.config import LONGEST


def named(numbers: Sequence[int]) -> str:
    """Returns the folder name of a job with these trials: 0000+0001, or 0000-0059 where that would be too long."""
    name = "+".join(f"{number:04d}" for number in numbers)
    if len(name) > LONGEST:
        name = spans(numbers, 4)
    if len(name) > LONGEST:  # many gaps, as members of a gang were run alone
        name = f"{min(numbers):04d}-{max(numbers):04d}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name


def spans(numbers: Sequence[int], digits: int = 1) -> str:
    """Formats numbers in order, with runs of three or more as ranges: 0-59+61."""
    rows: list[list[int]] = []
    for number in sorted(numbers):
        if rows and number == rows[-1][-1] + 1:
            rows[-1].append(number)
        else:
            rows.append([number])
    parts = [[row[0], row[-1]] if len(row) > 2 else row for row in rows]
    marks = ["-" if len(row) > 2 else "+" for row in rows]
    return "+".join(
        mark.join(f"{number:0{digits}d}" for number in part) for mark, part in zip(marks, parts, strict=True)
    )
