"""The output of a running command: one live display on a terminal, plain log lines elsewhere."""

from kdnas.base.screen.activities import Activity, activity, duration
from kdnas.base.screen.display import aside, board
from kdnas.base.screen.lines import Console, Lines, is_shown

__all__ = ["Activity", "Console", "Lines", "activity", "aside", "board", "duration", "is_shown"]
