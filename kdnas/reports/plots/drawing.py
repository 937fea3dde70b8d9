"""Common to all plots: colours, frame, legend entries, the Pareto front, labels that hide nothing."""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike

# Okabe and Ito's palette, which is safe for colour-blind readers.
COLOURS = {"random": "#E69F00", "controller": "#0072B2"}
ORIGINS = {"random": "chosen at random", "controller": "chosen by controller"}
FRONT, TEACHER, CHANCE, MARK = "#009E73", "#CC79A7", "0.45", "black"
LABELS = 10  # the most points that get a label; the others are only marked


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


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Returns the indices of the points on the Pareto front, both values minimised, by rising first value.

    A point is dominated by one that is no worse in both values and better in one, so equal points are both on the
    front or neither. Points with a NaN are left out.
    """
    front: list[int] = []
    numbers = [index for index, point in enumerate(points) if not any(map(math.isnan, point))]
    for index in sorted(numbers, key=lambda index: points[index]):
        if not front or points[index][1] < points[front[-1]][1] or points[index] == points[front[-1]]:
            front.append(index)
    return front


def label_spots(figure: Figure, axes: Axes, around: ArrayLike, spots: ArrayLike, texts: Sequence[str]) -> None:
    """Places each text near its spot, inside the axes, over no other text and over few of the points around."""
    figure.draw_without_rendering()
    # Places are computed in pixels, so the layout must not change from here on.
    figure.set_layout_engine("none")
    point = figure.dpi / 72
    frame = axes.get_window_extent()
    finalists = axes.transData.transform(np.asarray(spots))
    points = [Bbox([pixel, pixel]).padded(3 * point) for pixel in axes.transData.transform(np.asarray(around))]
    taken = [text.get_window_extent() for text in axes.texts]
    taken += [Bbox([pixel, pixel]).padded(6 * point) for pixel in finalists]
    directions = [(1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1)]
    for spot, pixel, text in list(zip(np.asarray(spots), finalists, texts, strict=True))[:LABELS]:
        sized = axes.text(spot[0], spot[1], text, fontsize=8)
        extent = sized.get_window_extent().padded(3 * point)
        sized.remove()
        half = np.array([extent.width, extent.height]) / 2
        choices: list[tuple[float, np.ndarray, Bbox]] = []
        for distance, direction in product((6, 12, 20, 32, 48, 68, 92), directions):
            offset = np.array(direction) * (distance * point + half)
            box = Bbox([pixel + offset - half, pixel + offset + half])
            within = all(frame.contains(*corner) for corner in box.corners())
            trouble = 1000 * (box.count_overlaps(taken) + (not within)) + 20 * box.count_overlaps(points)
            choices.append((distance + trouble, offset, box))
        _, offset, box = min(choices, key=lambda choice: choice[0])
        taken.append(box)
        style: dict[str, Any] = {"fontsize": 8, "ha": "center", "va": "center", "zorder": 5}
        style["bbox"] = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
        nearest = tuple((1 - np.sign(offset)) / 2)  # the side of the text where the line ends
        style["arrowprops"] = {"arrowstyle": "-", "lw": 0.7, "shrinkB": 4, "relpos": nearest}
        axes.annotate(text, spot, tuple(offset / point), textcoords="offset points", **style)
