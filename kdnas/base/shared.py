"""What one process makes once for all of a search's candidates: the teacher, the data, the teacher's outputs."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")
_kept: dict[str, tuple[Hashable, Any]] = {}


def shared(kind: str, key: Hashable, make: Callable[[], T]) -> T:
    """What `make` gave the last time that this kind was asked for with this key. One of a kind is kept.

    Args:
        kind: as `teacher`.
        key: everything that it depends on.
    """
    if kind not in _kept or _kept[kind][0] != key:
        _kept.pop(kind, None)  # before the next is made: both might not fit
        _kept[kind] = key, make()
    return _kept[kind][1]


def forget(kind: str) -> None:
    """Lets go of what is kept of a kind."""
    _kept.pop(kind, None)
