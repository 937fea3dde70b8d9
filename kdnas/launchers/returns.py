"""What a launcher gives back of a job."""

from __future__ import annotations

from hydra.core.utils import JobReturn, JobStatus

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
    error = returned._return_value
    known = error if type(error) is ConfigError else RelayedError(f"{type(error).__name__}: {error}")
    return JobReturn(status=JobStatus.FAILED, _return_value=known)
