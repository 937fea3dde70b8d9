"""A plot of quality against latency."""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from kdnas.costs.cost import Latency
from kdnas.reports.plots.drawing import (
    CHANCE,
    COLOURS,
    FRONT,
    MARK,
    ORIGINS,
    TEACHER,
    counted,
    dot,
    fence,
    label_spots,
    new_figure,
    pareto,
    points_to,
)
from kdnas.reports.results import Results
from kdnas.search.observation import Observation

SMALLEST = 16.0  # the area of the smallest bubble, in square points, so that it is visible
FAR = 20  # the ratio of the highest to the lowest latency above which the axis is logarithmic


def pareto_plot(results: Results) -> Figure | None:
    """Plots held-out loss against latency (ms), one panel per device, with the Pareto front and the teacher.

    With a metric, as accuracy, 1 - metric takes the place of the loss, also for the teacher and chance. The area of a
    bubble is proportional to the student's parameters; a bar is the spread of a latency. Finalists have rings, with
    arrows to the results of the full distillation.
    """
    metric = results.metric
    what = f"1 − held-out {metric}" if metric else "held-out loss"
    points = _points(results)
    devices = [device for device in results.devices if points["latency", device].notna().any()]
    if not devices:
        return None
    figure, panels = new_figure(3.6 + 4.8 * len(devices), 5.4, len(devices))
    # Large bubbles first, so that they do not hide small ones.
    points = points.sort_values("parameters", ascending=False)
    largest = points["parameters"].iloc[0]
    points["area"] = points["parameters"] / largest * np.clip(1000 / math.sqrt(len(points)), 70, 260)
    points["area"] = points["area"].clip(lower=SMALLEST)
    ceiling = max(fence(points["loss"]), points["loss"][points["rank"].notna()].max())
    points["drawn loss"] = points["loss"].clip(upper=ceiling)
    for axes, device in zip(panels, devices, strict=True):
        here = points.assign(latency=points["latency", device], spread=points["spread", device])
        here = here.assign(busy=points["busy", device]).dropna(subset="latency")
        teacher = results.teacher.latency.get(device) if results.teacher else None
        quality = results.teacher_metrics.get(metric) if metric else None
        _draw_candidates(axes, here, 0.0, *([teacher.median] if teacher and quality is not None else []))
        axes.set_xlabel(f"latency on {device} (ms)")
        if teacher:
            _draw_teacher(axes, teacher, None if quality is None else 1 - quality)
        if metric and metric in results.chance:
            _draw_chance(axes, 1 - results.chance[metric])
    panels[0].set_ylabel(what)
    figure.legend(handles=_legend(results, points, ceiling), loc="outside right upper", frameon=False, labelspacing=0.7)
    title = f"{results.name}\n{what} against latency, {counted(len(points), 'candidate')}"
    panels[0].set_title(title, loc="left", pad=20)
    for axes, device in zip(panels, devices, strict=True):
        here = points.dropna(subset=[("latency", device)])
        around = here[[("latency", device), "drawn loss"]].to_numpy()
        finalists = here.dropna(subset="rank").sort_values("rank")
        spots = finalists[[("latency", device), "end"]].to_numpy()
        texts = [f"#{one['rank']:.0f} {one['architecture']}" for _, one in finalists.iterrows()]
        label_spots(figure, axes, np.concatenate([around, spots]), spots, texts)
    return figure


def _points(results: Results) -> pd.DataFrame:
    def loss(seen: Observation) -> float:
        metric = results.metric
        return 1 - seen.metrics.get(metric, math.nan) if metric else seen.metrics.get("loss", math.nan)

    finalists = {one.mini.trial for one in results.finalists}
    rows: list[dict[Any, Any]] = []
    for one in results.ranking:
        if one.cost is None or not math.isfinite(loss(one.mini)):
            continue
        full = loss(one.full) if one.full else math.nan
        row: dict[Any, Any] = {
            "loss": loss(one.mini),
            "full": full,
            "end": full if math.isfinite(full) else loss(one.mini),
            "parameters": one.cost.parameters,
            "colour": COLOURS[one.mini.origin],
            "rank": one.rank if one.mini.trial in finalists else math.nan,
            "architecture": str(one.architecture),
        }
        for device, seen in one.cost.latency.items():
            row |= {("latency", device): seen.median, ("spread", device): seen.spread, ("busy", device): seen.busy}
        rows.append(row)
    frame = pd.DataFrame(rows)
    columns = [(name, device) for name in ("latency", "spread", "busy") for device in results.devices]
    return frame.reindex(columns=[*(name for name in frame.columns if name not in columns), *columns])


def _draw_candidates(axes: Axes, points: pd.DataFrame, *reach: float) -> None:
    """Draws one panel: bubbles (triangles where the loss is cut, hollow where the host was busy), front and finalists.

    The axis includes the latencies of `reach` as well.
    """
    quiet = points["busy"] != True  # noqa: E712 (a column)
    cut = points["loss"] > points["drawn loss"]
    for shape, some in points.groupby(np.where(cut, "^", "o")):
        for hollow in (False, True):
            drawn = some[quiet[some.index] != hollow]
            if drawn.empty:
                continue
            dots = axes.scatter(drawn["latency"], drawn["drawn loss"], drawn["area"], marker=shape, zorder=3)
            dots.set(facecolor="none" if hollow else drawn["colour"], alpha=None if hollow else 0.7)
            dots.set(edgecolor=drawn["colour"] if hollow else "white", linewidth=1.4 if hollow else 0.5)
    front = points.iloc[pareto(list(zip(points["latency"], points["loss"], strict=True)))]
    axes.plot(front["latency"], front["drawn loss"], color=FRONT, linewidth=1.5, drawstyle="steps-post", zorder=2)
    final = points.dropna(subset="rank")
    axes.scatter(final["latency"], final["loss"], final["area"], "none", edgecolors=MARK, linewidths=1.4, zorder=4)
    full = final.dropna(subset="full")
    for latency, mini, end in zip(full["latency"], full["loss"], full["full"], strict=True):
        points_to(axes, (latency, mini), (latency, end))
    axes.scatter(full["latency"], full["full"], 45, full["colour"], marker="D", edgecolors=MARK, zorder=5)
    axes.margins(0.12)
    if 0 < FAR * points["latency"].min() < max(points["latency"].max(), *reach):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.autoscale_view()
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # spreads do not widen the axes
    middle = points["latency"], points["drawn loss"]
    axes.errorbar(*middle, xerr=points["spread"], fmt="none", ecolor="0.6", elinewidth=0.8, zorder=1)


def _draw_teacher(axes: Axes, latency: Latency, loss: float | None) -> None:
    """Draws the teacher: a point if its loss is known, else a line; beyond the panel, a note with an arrow."""
    left, right = axes.get_xlim()
    text = f"teacher {latency.median:.2f} ms" + ("" if loss is None else f", {loss:.3g}") + "*" * latency.busy
    if loss is not None:
        _widen(axes, latency.median, loss)
        axes.errorbar([latency.median], [loss], xerr=[latency.spread], fmt="none", ecolor=TEACHER, elinewidth=0.8)
        axes.scatter([latency.median], [loss], 160, TEACHER, marker="P", edgecolors="white", linewidths=0.5, zorder=5)
    elif left <= latency.median <= right:
        axes.axvline(latency.median, color=TEACHER, linewidth=1.5, linestyle="--")
    else:
        text = f"{text} →" if latency.median > right else f"← {text}"
    # The text is above the frame, where it hides no bubble.
    share = axes.transAxes.inverted().transform(axes.transData.transform((latency.median, 0)))[0]
    spot = float(np.clip(share, 0, 1))
    side = "left" if spot < 0.2 else "right" if spot > 0.8 else "center"
    axes.annotate(text, (spot, 1), (0, 2), "axes fraction", "offset points", ha=side, va="bottom", color=TEACHER)


def _draw_chance(axes: Axes, loss: float) -> None:
    """Draws a line at the loss of the best constant prediction; far beyond the panel, only a note."""
    low, high = axes.get_ylim()
    if low - (high - low) <= loss <= high + (high - low):
        _widen(axes, None, loss)
        axes.axhline(loss, color=CHANCE, linewidth=1.2, linestyle=":", zorder=1)
        spot, up = axes.transAxes.inverted().transform(axes.transData.transform((0, loss)))[1], 2
    else:
        spot, up = (1, -12) if loss > high else (0, 4)
    axes.annotate(f"chance {loss:.3g}", (1, spot), (-2, up), "axes fraction", "offset points", ha="right", color=CHANCE)


def _widen(axes: Axes, across: float | None, up: float) -> None:
    logarithmic = axes.get_xscale() == "log"
    for value, limits, setter in ((across, axes.get_xlim(), axes.set_xlim), (up, axes.get_ylim(), axes.set_ylim)):
        if value is None:
            continue
        if logarithmic and setter == axes.set_xlim:
            setter(min(limits[0], value / 1.3), max(limits[1], value * 1.3))
        else:
            margin = 0.06 * (max(*limits, value) - min(*limits, value))
            setter(min(limits[0], value - margin), max(limits[1], value + margin))


def _legend(results: Results, points: pd.DataFrame, ceiling: float) -> list[Artist]:
    handles: list[Artist] = [dot(colour, ORIGINS[origin]) for origin, colour in COLOURS.items()]
    if (points["loss"] > ceiling).any():
        handles.append(dot("grey", f"above {ceiling:.3g}", "^"))
    handles.append(Line2D([], [], color=FRONT, linewidth=1.5, label="Pareto front"))
    if points["rank"].notna().any():
        handles.append(dot("none", "finalist #rank", "o", 9))
    if points["full"].notna().any():
        handles.append(dot("white", "after full distillation", "D"))
    if results.teacher and results.metric in results.teacher_metrics:
        handles.append(dot(TEACHER, "teacher", "P", 8))
    handles.append(Line2D([], [], color="0.6", linewidth=0.8, label="middle 90 % of latencies"))
    if any(points[name].eq(True).any() for name in points if isinstance(name, tuple) and name[0] == "busy"):
        handles.append(hollow := dot("grey", "not filled, *: measured on a busy\nhost, not to be relied on"))
        hollow.set_markerfacecolor("none")
    handles.append(Line2D([], [], linestyle="none", label="\nparameters"))
    largest = points["parameters"].max()
    sizes = np.asarray(MaxNLocator(4, steps=[1, 2, 2.5, 4, 5, 10]).tick_values(0, largest / 1e6))
    for size in sizes[(sizes > 0) & (sizes <= largest / 1e6)]:
        handles.append(dot("lightgrey", f"{size:g} M", "o", math.sqrt(points["area"].max() * size * 1e6 / largest)))
    return handles
