"""The exception for bad input, and common checks of values."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from textwrap import shorten
from typing import Any, TypeGuard, TypeVar

Choice = TypeVar("Choice")


class ConfigError(ValueError):
    """Bad input. The message is one line: the key, its value and what would be allowed.

    Library classes name a setting as their own argument, `proxy`; whoever instantiates them knows where the class is
    mounted in the config, and completes the key to `data.proxy` (see `mounted`).
    """

    key: str | None = None
    """The setting that the message begins with, as long as it lacks the place where its class is mounted."""

    @classmethod
    def of(cls, key: str, rest: str) -> "ConfigError":
        """Makes the error of a setting: the message is the key and the rest, as `=0: must be above 0`."""
        error = cls(f"{key}{rest}")
        error.key = key
        return error

    def within(self, prefix: str) -> "ConfigError":
        """Returns the error with its key below `prefix`; the same one if its key is complete."""
        if self.key is None:
            return self
        return type(self).of(f"{prefix}.{self.key}", str(self).removeprefix(self.key))


@contextmanager
def mounted(prefix: str) -> Iterator[None]:
    """Completes the keys of errors in the block by an object's place in the config: `with mounted("data"): ...`."""
    try:
        yield
    except ConfigError as error:
        completed = error.within(prefix)
        if completed is error:
            raise
        raise completed from error


def require(fits: bool, key: str, value: Any, allowed: str) -> None:
    """Raises the `ConfigError` "key=value: must be <allowed>" unless a value fits; a class names its own argument."""
    if not fits:
        raise ConfigError.of(key, f"={shown(value)}: must be {allowed}")


def chosen(key: str, name: str, choices: Mapping[str, Choice]) -> Choice:
    """Returns the choice of a name; raises a `ConfigError` if there is none."""
    require(name in choices, key, name, f"one of {', '.join(choices)}")
    return choices[name]


def shown(value: Any) -> str:
    """Formats a value as on the command line, in one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value)
    return text if text.isprintable() and text.strip() else repr(text)


def require_whole(key: str, value: Any, least: int) -> None:
    """Refuses a value that is no integer of at least `least`; true and 2.0 are refused."""
    require(is_whole(value) and value >= least, key, value, f"a whole number from {least}")


def is_whole(value: Any) -> TypeGuard[int]:
    """Returns whether a value is an integer, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def require_switch(key: str, value: Any) -> None:
    """Refuses a value that is neither true nor false, as others would silently count as one of them."""
    require(isinstance(value, bool), key, value, "true or false")


def is_number(value: Any) -> bool:
    """Returns whether a value is a finite number, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and its chain of causes."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


def reason(error: Exception) -> str:
    """Returns the first line of another library's error message, in at most 200 characters."""
    first = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
    return shorten(first, 200)
