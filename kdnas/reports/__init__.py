"""The report of a search: tables, plots and a closing message, all made from its studies."""

from pathlib import Path

from kdnas.reports.files import write_files
from kdnas.reports.plots import controller_plot, pareto_plot, reward_plot
from kdnas.reports.results import Results
from kdnas.reports.summary import answer, commands, files
from kdnas.reports.table import candidates, table, whole_numbers
from kdnas.reports.text import as_markdown, drawn

__all__ = ["Results", "answer", "commands", "drawn", "files", "write"]


def write(search: Path, results: Results) -> list[Path]:
    """Writes `report/` in a search folder: the tables, and the plots that have data; returns the paths."""
    contents = {
        "table.csv": whole_numbers(table(results)),
        "table.md": as_markdown(results),
        "candidates.csv": whole_numbers(candidates(results)),
        "reward.png": reward_plot(results),
        "pareto.png": pareto_plot(results),
        "controller.png": controller_plot(results),
    }
    return write_files("search.dir", search / "report", contents)
