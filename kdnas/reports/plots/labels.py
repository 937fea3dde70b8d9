"""Places labels beside points, where they hide nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike

LABELS = 10
"""The most points that get a label; the others are only marked."""


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
        axes.annotate(
            text,
            spot,
            tuple(offset / point),
            textcoords="offset points",
            fontsize=8,
            ha="center",
            va="center",
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
            # The line ends at the side of the text that is nearest to the spot.
            arrowprops={"arrowstyle": "-", "lw": 0.7, "shrinkB": 4, "relpos": tuple((1 - np.sign(offset)) / 2)},
            zorder=5,
        )
