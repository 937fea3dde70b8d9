"""What one process makes once for all of a search's candidates: the teacher, the data, the teacher's outputs."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")
_kept: dict[str, tuple[Hashable, Any]] = {}


def shared(kind: str, key: Hashable, make: Callable[[], T]) -> T:
    """Returns what `make` returned for this kind, as `teacher`, and this key: everything that it depends on.

    One object of a kind is kept, the last.
    """
    if kind not in _kept or _kept[kind][0] != key:
        _kept.pop(kind, None)  # before the next is made: both might not fit
        _kept[kind] = key, make()
    return _kept[kind][1]


def forget(kind: str) -> None:
    """Frees the object that is kept of a kind."""
    _kept.pop(kind, None)
