"""The common look of all plots: colours, frame, legend entries."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# Okabe and Ito's palette, which is safe for colour-blind readers.
COLOURS = {"random": "#E69F00", "controller": "#0072B2"}
ORIGINS = {"random": "chosen at random", "controller": "chosen by controller"}
FRONT, TEACHER, CHANCE, MARK = "#009E73", "#CC79A7", "0.45", "black"


def new_figure(width: float, height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """Makes a figure of a size in inches, with its panels."""
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    every = [figure.add_subplot(1, panels, 1 + panel) for panel in range(panels)]
    for axes in every:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    return figure, every


def dot(colour: str, label: str, shape: str = "o", size: float = 6) -> Line2D:
    """Makes a legend entry; `size` is the diameter in points."""
    edge = MARK if colour in ("white", "none") else colour
    return Line2D([], [], linestyle="none", marker=shape, color=colour, markeredgecolor=edge, ms=size, label=label)


def fence(values: np.ndarray | pd.Series) -> float:
    """Returns the value to cut an axis at, so that a few outliers do not flatten all other points."""
    low, high = np.percentile(values, [25, 75])
    return float(high + 3 * (high - low) if high > low else values.max())


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def points_to(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draws an arrow from a finalist's result of mini-KD to that of the full distillation."""
    style = {"arrowstyle": "->", "color": MARK, "lw": 0.9, "shrinkA": 5, "shrinkB": 4, "alpha": 0.7}
    axes.annotate("", end, start, arrowprops=style, zorder=4)
