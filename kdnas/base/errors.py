"""The exception for bad input, and common checks of values."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten
from typing import Any

REASON = 200
"""The most characters of another library's message that an error line quotes."""


class ConfigError(ValueError):
    """Bad input. The message is one line: the key, its value and what would be allowed."""


class SettingError(ConfigError):
    """A value that does not fit its setting.

    Library classes name the setting as their own argument, `proxy`; whoever instantiates them knows where the class is
    mounted in the config, and completes the key to `data.proxy` (see `mounted`).
    """

    def __init__(self, key: str, value: Any, allowed: str) -> None:
        super().__init__(f"{key}={shown(value)}: must be {allowed}")
        self.key, self.value, self.allowed = key, value, allowed

    def within(self, prefix: str) -> "SettingError":
        """Returns the same error with its key below `prefix`."""
        absolute = self.key.partition(".")[0] == prefix.partition(".")[0]
        return self if absolute else SettingError(f"{prefix}.{self.key}", self.value, self.allowed)


@contextmanager
def mounted(prefix: str) -> Iterator[None]:
    """Completes the keys of the `SettingError`s raised in the block, by the part of the config that an object is from.

    `with mounted("data"): data.setup("fit")`
    """
    try:
        yield
    except SettingError as error:
        raise error.within(prefix) from error


def require(fits: bool, key: str, value: Any, allowed: str) -> None:
    """Raises an error unless a value fits.

    Args:
        key: the setting; within a class that a config makes, the name of its argument.

    Raises:
        SettingError: `key=value: must be allowed`.
    """
    if not fits:
        raise SettingError(key, value, allowed)


def shown(value: Any) -> str:
    """Formats a value as on the command line, in one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value)
    return text if text.isprintable() and text.strip() else repr(text)


def require_whole(key: str, value: Any, least: int) -> None:
    """Refuses a value that is no integer of at least `least`; true and 2.0 are refused."""
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= least
    require(fits, key, value, f"a whole number from {least}")


def require_switch(key: str, value: Any) -> None:
    """Refuses a value that is neither true nor false, as others would silently count as one of them."""
    require(isinstance(value, bool), key, value, "true or false")


def is_number(value: Any) -> bool:
    """Returns whether a value is a finite number, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def reason(error: Exception) -> str:
    """Returns the first line of another library's error message, shortened."""
    first = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
    return shorten(first, REASON)
