"""Random architectures that are spread over a space, from its smallest to its largest."""

from collections.abc import Sequence
from contextlib import suppress
from random import Random

from kdnas.models.architecture import Architecture
from kdnas.models.space import SearchSpace

GOLDEN = (5**0.5 - 1) / 2
"""The golden section: however many of its multiples are taken modulo 1, they are spread evenly from 0 to 1."""
POOL = 1000
"""The number of architectures drawn from a space that is too large to list."""


def spread(pool: Sequence[Architecture], count: int, seed: int) -> list[Architecture]:
    """Draws different architectures that are spread evenly over the pool in the order of size.

    All are equally likely, as in a uniform draw, and equal sizes are in random order. But the number of weights, which
    has the largest influence on quality and cost, is stratified: a small set is never all small or all large. A larger
    `count` adds to the same ones.

    Args:
        count: at most the size of the pool.
    """
    rng = Random(seed)
    ordered = sorted(rng.sample(pool, len(pool)), key=lambda one: one.size)
    start = rng.random()
    places: dict[int, None] = {}
    for i in range(count):
        place = int((start + i * GOLDEN) % 1 * len(ordered))
        while place in places:
            place = (place + 1) % len(ordered)
        places[place] = None
    return [ordered[place] for place in places]


def members(space: SearchSpace, seed: int) -> list[Architecture]:
    """Returns all architectures of a space, or a thousand random ones where there are too many to list."""
    if space.enumerable:
        return list(space.members)
    rng, found = Random(seed), dict[Architecture, None]()
    with suppress(LookupError):  # the constraints leave fewer
        while len(found) < POOL:
            found[space.sample(rng, besides=set(found))] = None
    return list(found)
