"""Log lines as a user sees them."""

from __future__ import annotations

import logging

from kdnas.screen.display import board

LAUNCHERS = ("hydra.", "hydra_plugins.")
"""The beginnings of the loggers that tell each job's whole command line."""


def verbose() -> bool:
    """Whether everything was asked for, by hydra.verbose=true."""
    return logging.getLogger().isEnabledFor(logging.DEBUG)


def told(record: logging.LogRecord) -> bool:
    """Whether a line is for the user, and not for a job's own log file alone."""
    if verbose():
        return True
    if getattr(record, "heartbeat", False):
        return not board.hidden
    if board.aside.get():
        return False
    return record.levelno > logging.INFO or not record.name.startswith(LAUNCHERS)


class Lines(logging.Formatter):
    """The time and the message; of warnings and errors also that. Tracebacks are left to the jobs' log files.

    A record with the attribute `plain` is shown as it is.
    """

    def __init__(self, times: str = "%H:%M:%S") -> None:
        super().__init__(datefmt=times)

    def format(self, record: logging.LogRecord) -> str:
        if verbose():
            return logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] %(message)s", self.datefmt).format(record)
        if getattr(record, "plain", False):
            return record.getMessage()
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        return f"[{self.formatTime(record, self.datefmt)}] {level}{record.getMessage()}"


class Console(logging.Handler):
    """Prints what is for the user on standard output, above what is shown live."""

    def __init__(self, level: int | str = logging.NOTSET) -> None:
        super().__init__(level)
        self.setFormatter(Lines())
        self.addFilter(told)

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "heartbeat", False) and board.live:
            return  # the live display shows it
        try:
            board.say(self.format(record))
        except Exception:
            self.handleError(record)
