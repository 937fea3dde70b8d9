"""A plot of the controller's predictions."""

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdnas.reports.plots.drawing import counted, new_figure
from kdnas.reports.results import Results


def controller_plot(results: Results) -> Figure | None:
    """Plots predicted against actual rewards, coloured by episode; returns None without predictions."""
    seen = [one.mini for one in results.ranking if one.mini.prediction is not None]
    rows = [(one.prediction, one.reward, one.episode + 1) for one in seen]
    pairs = pd.DataFrame(rows, columns=["predicted", "actual", "episode"], dtype=float)
    pairs = pairs[np.isfinite(pairs).all(axis="columns")]
    if pairs.empty:
        return None
    figure, (axes,) = new_figure(6.6, 5.6)
    # The same limits on both axes, so that constant predictions are seen as such.
    values = pairs[["predicted", "actual"]].to_numpy()
    margin = 0.06 * (np.ptp(values) or 1.0)
    limits = (values.min() - margin, values.max() + margin)
    axes.axline((limits[0], limits[0]), slope=1, color="grey", lw=1, ls="--", label="actual = predicted", zorder=1)
    dots = axes.scatter(
        pairs["predicted"], pairs["actual"], 30, pairs["episode"], cmap="viridis", edgecolors="white", linewidths=0.4
    )
    first, last = pairs["episode"].min(), pairs["episode"].max()
    dots.set_clim(first - 0.5 * (first == last), last + 0.5 * (first == last))
    figure.colorbar(dots, label="episode", ticks=MaxNLocator(integer=True), fraction=0.05)
    axes.set(xlabel="predicted reward", ylabel="actual reward", xlim=limits, ylim=limits, aspect="equal")
    rho = spearman(pairs["predicted"], pairs["actual"])
    known = "undefined" if math.isnan(rho) else f"{rho:.2f}"
    title = f"predicted against actual reward, {counted(len(pairs), 'candidate')}, Spearman ρ = {known}"
    axes.set_title(f"{results.name}\n{title}", loc="left", fontsize=11)
    axes.legend(loc="upper left", frameon=False)
    return figure


def spearman(first: pd.Series, second: pd.Series) -> float:
    """Returns Spearman's rank correlation; NaN where it is undefined (fewer than two points, or no variation)."""
    if first.nunique() < 2 or second.nunique() < 2:
        return math.nan
    return float(first.rank().corr(second.rank()))
