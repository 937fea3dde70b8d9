"""A user's mistakes: the one exception that stands for them, and the checks of numbers that most of them fail."""

import math
from textwrap import shorten
from typing import Any

REASON = 200
"""Characters of another library's message that are worth telling."""


class ConfigError(ValueError):
    """Bad input. The message is one line: the key, its value and what would be allowed."""


def require(fits: bool, key: str, value: Any, allowed: str) -> None:
    """Refuses a value that does not fit.

    Raises:
        ConfigError: `key=value: must be allowed`.
    """
    if not fits:
        raise ConfigError(f"{key}={shown(value)}: must be {allowed}")


def shown(value: Any) -> str:
    """A value as it would be given on the command line, in one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value)
    return text if text.isprintable() and text.strip() else repr(text)


def require_whole(key: str, value: Any, least: int) -> None:
    """Refuses what is no whole number from `least`; true and 2.0 are none."""
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= least
    require(fits, key, value, f"a whole number from {least}")


def require_switch(key: str, value: Any) -> None:
    """Refuses what is neither true nor false: other values would count as one of them."""
    require(isinstance(value, bool), key, value, "true or false")


def is_number(value: Any) -> bool:
    """Whether it is one that can be reckoned with: not NaN, infinite, true or text."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def reason(error: Exception) -> str:
    """Another library's message in one line that is worth telling."""
    first = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
    return shorten(first, REASON)
