"""The report on proxies in words: the recommendation, the notes, and the table for a terminal and in Markdown."""

import io
from pathlib import Path

from rich.console import Console

from kdnas.reports.cells import WIDTH, grid, markdown
from kdnas.reports.files import write_files
from kdnas.reports.notes import ARCHITECTURE
from kdnas.reports.proxy.plots import scatter_plot, tau_plot
from kdnas.reports.proxy.results import Comparison
from kdnas.reports.proxy.table import as_text, table, trainings


def write(folder: Path, found: Comparison) -> list[Path]:
    """Writes `report/` in the folder of an evaluation: the tables and the plots; returns the paths."""
    contents = {
        "proxies.csv": table(found),
        "proxies.md": as_markdown(found),
        "trainings.csv": trainings(found),
        "tau.png": tau_plot(found),
        "rankings.png": scatter_plot(found),
    }
    return write_files("search.dir", folder / "report", contents)


def answer(found: Comparison) -> str:
    """Says which proxy is recommended, or which one is the best if none is good enough."""
    criterion, one = found.criterion, found.chosen
    of = {"quality": found.metric, "reward": "reward"}[criterion.by]
    tau = one.taus[criterion.by]
    bounds = f"τ of the {of} {tau.value:.2f}, {100 * criterion.confidence:g} % interval {tau.low:.2f} to {tau.high:.2f}"
    time = f"{one.seconds:.3g} s a candidate, {100 * one.share:.3g} % of a full distillation"
    if found.passing:
        return f"Recommended: {one.proxy} ({bounds}; {time})"
    return (
        f"No proxy passes: the lower bound of τ is nowhere {criterion.threshold:g} or more. The best is {one.proxy} "
        f"({bounds}; {time}).\nMore epochs or rows tend to raise τ, more architectures narrow the interval."
    )


def notes(found: Comparison) -> list[str]:
    """Returns the notes below the table."""
    criterion, full = found.criterion, found.full
    return [
        f"Kendall's τ-b with full distillation over {len(full.seen)} architectures, in brackets the "
        f"{100 * criterion.confidence:g} % percentile interval of {criterion.resamples} bootstrap resamples. "
        "The reward includes the latency, which is the same after both trainings.",
        "*: recommended. #: the place after full distillation of the architecture that the proxy ranks first.",
        f"A full distillation took {full.seconds:.3g} s an architecture.",
        *["Latencies were measured on a busy host: τ of the reward is not to be relied on."] * found.busy,
        *(f"Left out: {line}" for line in found.left_out),
    ]


def as_markdown(found: Comparison) -> str:
    """Formats the recommendation, the table and the notes in Markdown."""
    parts = [f"# Proxies of {found.name}", answer(found), markdown(as_text(found)), *notes(found), ARCHITECTURE]
    return "\n\n".join(parts) + "\n"


def drawn(found: Comparison, console: Console) -> str:
    """Draws the table and its notes for a console."""
    text, file = as_text(found), io.StringIO()
    width = console.width if console.is_terminal else WIDTH
    inner = Console(file=file, width=width, color_system=None)
    inner.print(grid({name.replace(" of ", "\nof ").replace(" by ", "\nby "): list(text[name]) for name in text}, [""]))
    return "\n".join([file.getvalue().rstrip(), "", *notes(found)])
