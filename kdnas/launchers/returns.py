"""What a launcher gives back of a job."""

from __future__ import annotations

from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from kdnas.disk import DiskError, disk_error
from kdnas.errors import ConfigError


class RelayedError(RuntimeError):
    """What a job raised in another process, as `<type>: <message>`."""


class DiedError(RelayedError):
    """A job's process ended without a word of its own."""


def reason(returned: JobReturn) -> str:
    """Why a job failed; nothing if it did not."""
    error = returned._return_value
    if returned.status != JobStatus.FAILED:
        return ""
    return str(error) if isinstance(error, RelayedError) else f"{type(error).__name__}: {error}"


def died(cause: str) -> JobReturn:
    return JobReturn(status=JobStatus.FAILED, _return_value=DiedError(cause))


def told(returned: JobReturn) -> JobReturn:
    """What of a job's end is sure to be readable in another process: a config or an exception may not be."""
    if returned.status != JobStatus.FAILED:
        return JobReturn(status=returned.status)
    return failed(returned._return_value)


def failed(error: Exception) -> JobReturn:
    """The end of a job by an error, which is kept if it is of a known kind."""
    known = disk_error(error) or error
    if type(known) not in KINDS.values():
        known = RelayedError(f"{type(error).__name__}: {error}")
    return JobReturn(status=JobStatus.FAILED, _return_value=known)


def to_json(returned: JobReturn) -> Any:
    """What `told` returned, as plain values."""
    error = returned._return_value
    return None if error is None else {"kind": type(error).__name__, "text": str(error)}


def from_json(outcome: Any) -> JobReturn:
    if outcome is None:
        return JobReturn(status=JobStatus.COMPLETED)
    return JobReturn(status=JobStatus.FAILED, _return_value=KINDS[outcome["kind"]](outcome["text"]))


KINDS = {kind.__name__: kind for kind in (ConfigError, DiskError, RelayedError, DiedError)}
"""The errors that a search tells apart, each made of its message."""
