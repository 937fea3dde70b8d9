"""The plots of an evaluation of proxies: τ over the grid, and the rankings by the proxy that was chosen."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from kdnas.reports.plots.drawing import COLOURS, MARK, counted, label_spots, new_figure
from kdnas.reports.proxy.results import Comparison, Score
from kdnas.search.fidelity import RANKED_BY

DARK = 0.55
"""The share of the colour scale below which a cell is dark, so that its text is white."""


def tau_plot(found: Comparison) -> Figure:
    """Draws τ and its interval over epochs and data, for quality and for reward; the recommended proxy is framed."""
    epochs = sorted({one.proxy.epochs for one in found.scores})
    data = sorted({one.proxy.data for one in found.scores})
    figure, panels = new_figure(3.2 + 2.8 * len(data), 2.2 + 0.8 * len(epochs), len(RANKED_BY))
    for axes, name in zip(panels, RANKED_BY, strict=True):
        values = np.full((len(epochs), len(data)), np.nan)
        for one in found.scores:
            row, column = epochs.index(one.proxy.epochs), data.index(one.proxy.data)
            values[row, column] = one.taus[name].value
            axes.text(column, row, cell(one, name), ha="center", va="center", fontsize=9, color=ink(one, name))
            if one == found.passing:
                axes.add_patch(Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, fill=False, edgecolor=MARK, lw=2.5))
        places = range(len(data)), range(len(epochs))
        shown = axes.pcolormesh(*places, values, cmap="viridis", vmin=0, vmax=1, edgecolors="white", linewidth=3)
        axes.set_xticks(range(len(data)), [f"{100 * share:g} %" for share in data])
        axes.set_yticks(range(len(epochs)), [str(number) for number in epochs])
        axes.set(xlabel="share of the rows", title=f"τ of the {found.metric if name == 'quality' else name}")
    panels[0].set_ylabel("epochs")
    figure.colorbar(shown, ax=panels, label="Kendall's τ with full distillation", fraction=0.05)
    framed = "" if found.passing is None else "; framed: recommended"
    figure.suptitle(f"{found.name}, {counted(len(found.full.seen), 'architecture')}{framed}", x=0.01, ha="left")
    return figure


def cell(one: Score, name: str) -> str:
    tau = one.taus[name]
    return f"{tau.value:.2f}\n[{tau.low:.2f}, {tau.high:.2f}]"


def ink(one: Score, name: str) -> str:
    return "white" if one.taus[name].value < DARK else "black"


def scatter_plot(found: Comparison) -> Figure:
    """Plots each architecture's result by the chosen proxy against that of full distillation, metric and reward."""
    figure, panels = new_figure(11, 5.2, len(RANKED_BY))
    chosen = next(one for one in found.proxies if one.proxy == found.chosen.proxy)
    texts = [str(one.architecture) for one in found.full.seen]
    pairs = {
        "quality": [[one.metrics[found.metric] for one in ranked.seen] for ranked in (chosen, found.full)],
        "reward": [[one.reward for one in ranked.seen] for ranked in (chosen, found.full)],
    }
    for axes, name in zip(panels, RANKED_BY, strict=True):
        across, up = pairs[name]
        axes.scatter(across, up, 36, COLOURS["controller"], edgecolors="white", linewidths=0.5)
        of = f"held-out {found.metric}" if name == "quality" else name
        axes.set(xlabel=f"{of}, {chosen.proxy}", ylabel=f"{of}, full distillation")
        axes.set_title(f"τ = {found.chosen.taus[name].value:.2f}", loc="left")
        axes.margins(0.15)
    what = "recommended proxy" if found.passing else "best proxy (none passes)"
    figure.suptitle(f"{found.name}: {what}, {counted(len(texts), 'architecture')}", x=0.01, ha="left")
    for axes, name in zip(panels, RANKED_BY, strict=True):
        spots = np.transpose(pairs[name])
        label_spots(figure, axes, spots, spots, texts)
    return figure
