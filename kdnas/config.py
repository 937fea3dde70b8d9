"""Objects from configs."""

from __future__ import annotations

from typing import Any

import hydra.utils
from hydra.errors import InstantiationException

from kdnas.errors import ConfigError


def instantiate(config: Any, **arguments: Any) -> Any:
    """Hydra's `instantiate`, with plain containers, and with a `ConfigError` raised as itself rather than wrapped."""
    try:
        return hydra.utils.instantiate(config, _convert_="object", **arguments)
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ConfigError):
            cause = cause.__cause__
        raise cause or error from error
