"""The report of a search: tables, plots and a closing message, all made from its studies."""

from kdnas.reports.commands import commands
from kdnas.reports.files import write
from kdnas.reports.results import Results
from kdnas.reports.summary import answer, files
from kdnas.reports.text import drawn

__all__ = ["Results", "answer", "commands", "drawn", "files", "write"]
