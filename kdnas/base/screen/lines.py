"""The filter and the format of log lines on the terminal."""

import logging

from kdnas.base.screen.display import board

LAUNCHERS = ("hydra.", "hydra_plugins.")
"""Prefixes of the loggers that log the whole command line of each job."""


def verbose() -> bool:
    """Returns whether all log lines are to be shown, by hydra.verbose=true."""
    return logging.getLogger().isEnabledFor(logging.DEBUG)


def is_shown(record: logging.LogRecord) -> bool:
    """Returns whether a line is shown on the terminal, and not only written to a job's log file."""
    if verbose():
        return True
    if getattr(record, "heartbeat", False):
        return not board.hidden
    if board.aside.get():
        return False
    return record.levelno > logging.INFO or not record.name.startswith(LAUNCHERS)


class Lines(logging.Formatter):
    """Formats time (unless the record is `plain`), level of warnings and errors, and message, without tracebacks."""

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
    """Prints log lines on standard output, above the live display."""

    def __init__(self, level: int | str = logging.NOTSET) -> None:
        super().__init__(level)
        self.setFormatter(Lines())
        self.addFilter(is_shown)

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "heartbeat", False) and board.live:
            return  # the live display shows it
        try:
            board.print(self.format(record))
        except Exception:
            self.handleError(record)
