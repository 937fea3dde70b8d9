"""Writes the report's files in a search folder."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from kdnas.reports.notes import ARCHITECTURE, NO_CANDIDATE, notes
from kdnas.reports.plots import controller_plot, pareto_plot, reward_plot
from kdnas.reports.results import Results
from kdnas.reports.table import candidates, table, whole
from kdnas.reports.text import as_text

TABLES = ("table.csv", "table.md", "candidates.csv")
PLOTS = {"reward.png": reward_plot, "pareto.png": pareto_plot, "controller.png": controller_plot}


def write(search: Path, results: Results) -> list[Path]:
    """Writes `report/` in a search folder: the tables, and the plots that have data; returns the paths.

    All files are made in a temporary folder and then moved, so an error leaves an earlier report as it was.
    """
    folder = Path(search) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".") as aside:
        made = Path(aside)
        whole(table(results)).to_csv(made / "table.csv", index=False)
        whole(candidates(results)).to_csv(made / "candidates.csv", index=False)
        (made / "table.md").write_text(_markdown(results), encoding="utf-8")
        for name, plot in PLOTS.items():
            if (figure := plot(results)) is not None:
                figure.savefig(made / name, format="png", dpi=figure.dpi)
        names = [name for name in (*TABLES, *PLOTS) if (made / name).exists()]
        for name in names:
            os.replace(made / name, folder / name)
    for name in set(PLOTS) - set(names):
        (folder / name).unlink(missing_ok=True)
    return [folder / name for name in names]


def _markdown(results: Results) -> str:
    text = as_text(results)
    text = text[[name for name in text if any(text[name])]]
    rows = [text.to_markdown(index=False, disable_numparse=True)] if len(text) else []
    missing = [] if results.ranking else [NO_CANDIDATE]
    explained = [ARCHITECTURE] if results.ranking else []
    return "\n\n".join([f"# {results.name}", *missing, *rows, *explained, *notes(results)]) + "\n"
