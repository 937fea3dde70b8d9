"""Checks the weights of a sum of losses."""

from collections.abc import Collection, Mapping
from typing import Any

from kdnas.base.errors import is_number, require


def check_weights(key: str, weights: Any, names: Collection[str], default: float) -> None:
    """Refuses weights, by name, that are of none of the names, are no numbers from 0, or are 0 for all.

    Args:
        key: the setting that error messages name.
        names: the names of the losses.
        default: the weight of a name without one.
    """
    require(isinstance(weights, Mapping), key, weights, f"weights by name, as {{{next(iter(names))}: 1}}")
    for name, weight in weights.items():
        require(name in names, f"{key}.{name}", weight, f"the weight of one of {', '.join(names)}")
        require(is_number(weight) and weight >= 0, f"{key}.{name}", weight, "a number from 0")
    given = {name: weights.get(name, default) for name in names}
    require(any(given.values()), key, dict(weights), "weights of which at least one is above 0")
