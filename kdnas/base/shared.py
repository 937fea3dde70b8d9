"""Objects that a process makes once for all candidates of a search: the teacher, the data, the teacher cache."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")
_kept: dict[str, tuple[Hashable, Any]] = {}


def shared(kind: str, key: Hashable, make: Callable[[], T]) -> T:
    """Returns the one shared object of a kind, as `teacher`; makes it if there is none, or if its key is another.

    The key holds everything that the object depends on.
    """
    if kind not in _kept or _kept[kind][0] != key:
        _kept.pop(kind, None)  # first: memory may not hold both
        _kept[kind] = key, make()
    return _kept[kind][1]


def forget(kind: str) -> None:
    """Frees the shared object of a kind, if there is one."""
    _kept.pop(kind, None)
