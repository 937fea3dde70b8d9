"""A plot of the GLUE scores of several models against their latencies."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdnas.reports.plots.drawing import COLOURS, FRONT, TEACHER, counted, dot, label_spots, new_figure, pareto


def score_plot(table: pd.DataFrame, devices: Sequence[str], teacher: str | None, score: str) -> Figure | None:
    """Plots average score against latency (ms), a point a model, one panel per device (KD-NAS v1, Figure 1).

    Models that lack the `average` or the latency in the table are left out; `score` labels the average.
    """
    points = table.dropna(subset=["average", *(f"latency {device} (ms)" for device in devices)])
    if points.empty or not devices:
        return None
    figure, panels = new_figure(2.4 + 4.6 * len(devices), 4.8, len(devices))
    colours = np.where(points["model"] == teacher, TEACHER, COLOURS["controller"])
    for axes, device in zip(panels, devices, strict=True):
        latency, average = points[f"latency {device} (ms)"], points["average"]
        axes.errorbar(latency, average, points["average deviation"], fmt="none", ecolor="0.6", linewidth=1, zorder=1)
        axes.scatter(latency, average, 45, colours, edgecolors="white", linewidths=0.5, zorder=3)
        front = points.iloc[pareto(list(zip(latency, -average, strict=True)))]
        steps = (front[latency.name], front["average"])
        axes.plot(*steps, color=FRONT, linewidth=1.5, drawstyle="steps-post", zorder=2)
        axes.set_xlabel(f"latency on {device} (ms)")
        axes.margins(0.15)
    panels[0].set_ylabel(f"{score} (%)")
    panels[0].set_title(f"average GLUE score against latency, {counted(len(points), 'model')}", loc="left")
    handles: list[Artist] = [dot(COLOURS["controller"], "model"), Line2D([], [], color=FRONT, label="Pareto front")]
    if teacher in set(points["model"]):
        handles.insert(1, dot(TEACHER, "teacher"))
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    for axes, device in zip(panels, devices, strict=True):
        spots = points[[f"latency {device} (ms)", "average"]].to_numpy()
        label_spots(figure, axes, spots, spots, list(points["model"]))
    return figure
