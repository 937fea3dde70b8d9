"""Objects from configs."""

from __future__ import annotations

from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf.errors import OmegaConfBaseException

from kdnas.errors import ConfigError


def instantiate(config: Any, **arguments: Any) -> Any:
    """Hydra's `instantiate`, with plain containers, and with the mistakes that it wraps as `ConfigError`."""
    try:
        return hydra.utils.instantiate(config, _convert_="object", **arguments)
    except OmegaConfBaseException as error:  # a value that another one was to give
        name = str(config.get("_target_")).rsplit(".")[-1] if error.full_key is None else error.full_key
        raise ConfigError(f"{name}: wants a value that no chosen group gives ({str(error).splitlines()[0]})") from error
    except InstantiationException as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, ConfigError):
            cause = cause.__cause__
        if isinstance(cause, ConfigError):
            raise cause from error
        if isinstance(cause, TypeError | ValueError):  # a value of the wrong type, a key that it does not have
            raise ConfigError(f"{str(config.get('_target_')).rsplit('.')[-1]}: {cause}") from error
        raise cause from None  # what happened, not where it was wrapped
