"""The outcomes of jobs that launchers return."""

from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from kdnas.base.disk import DiskError, disk_error
from kdnas.base.errors import ConfigError


class RelayedError(RuntimeError):
    """An error that a job raised in another process, as `<type>: <message>`."""


class DiedError(RelayedError):
    """A job's process ended without reporting an error."""


def reason(returned: JobReturn) -> str:
    """Returns why a job failed; empty if it did not."""
    error = returned._return_value
    if returned.status != JobStatus.FAILED:
        return ""
    return str(error) if isinstance(error, RelayedError) else f"{type(error).__name__}: {error}"


def died(cause: str) -> JobReturn:
    return JobReturn(status=JobStatus.FAILED, _return_value=DiedError(cause))


def portable(returned: JobReturn) -> JobReturn:
    """Reduces a job's return to what any process can unpickle, without its config and unknown exceptions."""
    if returned.status != JobStatus.FAILED:
        return JobReturn(status=returned.status)
    return failed(returned._return_value)


def failed(error: Exception) -> JobReturn:
    """Returns the outcome of a job that an error ended; errors of unknown types become a `RelayedError`."""
    known = disk_error(error) or error
    if type(known) not in KINDS.values():
        known = RelayedError(f"{type(error).__name__}: {error}")
    return JobReturn(status=JobStatus.FAILED, _return_value=known)


def to_json(returned: JobReturn) -> Any:
    """Converts what `portable` returned to JSON values."""
    error = returned._return_value
    return None if error is None else {"kind": type(error).__name__, "text": str(error)}


def from_json(outcome: Any) -> JobReturn:
    if outcome is None:
        return JobReturn(status=JobStatus.COMPLETED)
    return JobReturn(status=JobStatus.FAILED, _return_value=KINDS[outcome["kind"]](outcome["text"]))


KINDS = {kind.__name__: kind for kind in (ConfigError, DiskError, RelayedError, DiedError)}
"""The types of errors that a search handles differently; each is made from its message."""
