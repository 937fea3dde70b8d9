"""A search in three pictures: what was earned, what it costs, how well the controller knew. And GLUE in one.

Every function takes observations (or a table) and gives a matplotlib `Figure` (Agg, no pyplot state), or None where
there is nothing to draw. `marked` are the finalists: trial number -> rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike

from kdnas.search.study import Cost, Observation

# Okabe and Ito's palette: told apart with any colour vision.
COLOURS = {"random": "#E69F00", "controller": "#0072B2"}
ORIGINS = {"random": "chosen at random", "controller": "chosen by controller"}
FRONT, TEACHER, MARK = "#009E73", "#CC79A7", "black"
LABELS = 10
"""At most this many finalists get a label; the others are only marked."""


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """The indices of the points that no other point beats, both values minimised, by rising first value.

    A point is beaten by one that is no worse in both and better in one: equal points stand or fall together. Points
    with a NaN are left out.
    """
    front: list[int] = []
    numbers = [index for index, point in enumerate(points) if not any(map(math.isnan, point))]
    for index in sorted(numbers, key=lambda index: points[index]):
        if not front or points[index][1] < points[front[-1]][1] or points[index] == points[front[-1]]:
            front.append(index)
    return front


def reward_plot(seen: Sequence[Observation], marked: Mapping[int, int], search: str) -> Figure | None:
    """Reward against candidate number, with the best so far, the episodes and who chose."""
    seen = sorted((one for one in seen if math.isfinite(one.reward)), key=lambda one: one.trial)
    if not seen:
        return None
    figure, (axes,) = _figure(9.5, 4.8)
    rewards = np.array([one.reward for one in seen])
    trials = np.array([one.trial for one in seen])
    floor = -_fence(-rewards)
    shown = np.maximum(rewards, floor)
    handles: list[Artist] = [_shade_episodes(axes, seen)]
    for origin, colour in COLOURS.items():
        chosen = np.array([one.origin == origin for one in seen])
        handles.append(_dot(colour, ORIGINS[origin]))
        for inside, shape in ((rewards >= floor, "o"), (rewards < floor, "v")):
            drawn = chosen & inside
            axes.scatter(trials[drawn], shown[drawn], 22, colour, marker=shape, alpha=0.75, linewidths=0)
    if (rewards < floor).any():
        handles.append(_dot("grey", f"below {floor:.3g}", "v"))
    margin = 0.5 + 0.015 * np.ptp(trials)
    best = np.maximum.accumulate(shown)
    axes.plot([*trials, trials[-1] + margin], [*best, best[-1]], color=MARK, linewidth=1.2, drawstyle="steps-post")
    handles.append(Line2D([], [], color=MARK, linewidth=1.2, label="best so far"))
    finalists = sorted((one for one in seen if one.trial in marked), key=lambda one: marked[one.trial])
    if finalists:
        spots = [(one.trial, max(one.reward, floor)) for one in finalists]
        colours = [COLOURS[one.origin] for one in finalists]
        across, up = np.transpose(spots)
        axes.scatter(across, up, 130, colours, marker="*", edgecolors=MARK, zorder=4)
        handles.append(_dot("white", "finalist #rank", "*", 11))
    axes.set(xlabel="candidate (trial number)", ylabel="reward", xlim=(trials[0] - margin, trials[-1] + margin))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(y=0.12)
    episodes = len({one.episode for one in seen})
    axes.set_title(f"{search}\nreward of {_count(len(seen), 'candidate')} in {_count(episodes, 'episode')}", loc="left")
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    if finalists:
        _label(figure, axes, np.transpose([trials, shown]), spots, [f"#{marked[one.trial]}" for one in finalists])
    return figure


def pareto_plot(
    seen: Sequence[Observation], marked: Mapping[int, int], teacher: Cost | None, search: str
) -> Figure | None:
    """Held-out loss against latency (ms), one panel per device, with the Pareto front and the teacher's latency.

    Of students that have a metric, as accuracy, it is 1 - metric in place of the loss. The area of a bubble is
    proportional to the student's parameters.
    """
    metric = next((name for one in seen for name in one.metrics if name != "loss"), None)
    what = f"1 − held-out {metric}" if metric else "held-out loss"

    def loss(one: Observation) -> float:
        return 1 - one.metrics.get(metric, math.nan) if metric else one.metrics.get("loss", math.nan)

    points = pd.DataFrame(
        [
            {
                "loss": loss(one),
                "parameters": one.cost.parameters,
                "colour": COLOURS[one.origin],
                "rank": marked.get(one.trial, math.nan),
                "architecture": str(one.architecture),
                **{("latency", device): latency.median for device, latency in one.cost.latency.items()},
            }
            for one in seen
            if one.cost and math.isfinite(loss(one))
        ]
    )
    devices = [name[1] for name in points.columns if isinstance(name, tuple)]
    if not devices:
        return None
    figure, panels = _figure(3.4 + 4.6 * len(devices), 5.2, len(devices))
    # Large bubbles first, so that they do not hide small ones.
    points = points.sort_values("parameters", ascending=False)
    largest = points["parameters"].iloc[0]
    points["area"] = points["parameters"] / largest * np.clip(1000 / math.sqrt(len(points)), 70, 260)
    ceiling = max(_fence(points["loss"]), points["loss"][points["rank"].notna()].max())
    points["drawn loss"] = points["loss"].clip(upper=ceiling)
    for axes, device in zip(panels, devices, strict=True):
        _draw_tradeoff(axes, points.assign(latency=points["latency", device]).dropna(subset="latency"))
        axes.set_xlabel(f"latency on {device} (ms)")
        if teacher and device in teacher.latency:
            _draw_teacher(axes, teacher.latency[device].median)
    panels[0].set_ylabel(what)
    handles: list[Artist] = [_dot(colour, ORIGINS[origin]) for origin, colour in COLOURS.items()]
    if (points["loss"] > ceiling).any():
        handles.append(_dot("grey", f"above {ceiling:.3g}", "^"))
    handles.append(Line2D([], [], color=FRONT, linewidth=1.5, label="Pareto front"))
    if points["rank"].notna().any():
        handles.append(_dot("none", "finalist #rank", "o", 9))
    handles.append(Line2D([], [], linestyle="none", label="\nparameters"))
    sizes = np.asarray(MaxNLocator(4, steps=[1, 2, 2.5, 4, 5, 10]).tick_values(0, largest / 1e6))
    for size in sizes[(sizes > 0) & (sizes <= largest / 1e6)]:
        handles.append(_dot("lightgrey", f"{size:g} M", "o", math.sqrt(points["area"].max() * size * 1e6 / largest)))
    figure.legend(handles=handles, loc="outside right upper", frameon=False, labelspacing=0.7)
    title = f"{search}\n{what} against latency, {_count(len(points), 'candidate')}"
    panels[0].set_title(title, loc="left", pad=20)
    for axes, device in zip(panels, devices, strict=True):
        spots = [("latency", device), "drawn loss"]
        here = points.dropna(subset=spots[:1])
        finalists = here.dropna(subset="rank").sort_values("rank")
        texts = [f"#{one.rank:.0f} {one.architecture}" for one in finalists.itertuples()]
        _label(figure, axes, here[spots], finalists[spots], texts)
    return figure


def controller_plot(seen: Sequence[Observation], search: str) -> Figure | None:
    """The reward that the controller expected against the one earned, coloured by episode; None without predictions."""
    pairs = pd.DataFrame(
        [(one.prediction, one.reward, one.episode + 1) for one in seen if one.prediction is not None],
        columns=["predicted", "actual", "episode"],
        dtype=float,
    )
    pairs = pairs[np.isfinite(pairs).all(axis="columns")]
    if pairs.empty:
        return None
    figure, (axes,) = _figure(6.6, 5.6)
    # The same limits on both axes: a controller that tells nothing apart should look like it.
    values = pairs[["predicted", "actual"]].to_numpy()
    margin = 0.06 * (np.ptp(values) or 1.0)
    limits = (values.min() - margin, values.max() + margin)
    axes.axline(
        (limits[0], limits[0]), slope=1, color="grey", linewidth=1, linestyle="--", label="actual = predicted", zorder=1
    )
    dots = axes.scatter(
        pairs["predicted"], pairs["actual"], 30, pairs["episode"], cmap="viridis", edgecolors="white", linewidths=0.4
    )
    first, last = pairs["episode"].min(), pairs["episode"].max()
    dots.set_clim(first - 0.5 * (first == last), last + 0.5 * (first == last))
    figure.colorbar(dots, label="episode", ticks=MaxNLocator(integer=True), fraction=0.05)
    axes.set(xlabel="predicted reward", ylabel="actual reward", xlim=limits, ylim=limits, aspect="equal")
    rho = spearman(pairs["predicted"], pairs["actual"])
    known = "undefined" if math.isnan(rho) else f"{rho:.2f}"
    size = _count(len(pairs), "candidate")
    axes.set_title(f"{search}\npredicted against actual reward, {size}, Spearman ρ = {known}", loc="left", fontsize=11)
    axes.legend(loc="upper left", frameon=False)
    return figure


def spearman(first: pd.Series, second: pd.Series) -> float:
    """Spearman's rank correlation; NaN where it is not defined (fewer than two points, or no variation)."""
    if first.nunique() < 2 or second.nunique() < 2:
        return math.nan
    return float(first.rank().corr(second.rank()))


def score_plot(table: pd.DataFrame, devices: Sequence[str], teacher: str | None, score: str) -> Figure | None:
    """Average score against latency (ms), a point a model, one panel per device (KD-NAS v1, Figure 1).

    Args:
        table: with `model`, `average` and `latency DEVICE (ms)`; a model that lacks one of them is left out.
        score: what the average is of.
    """
    points = table.dropna(subset=["average", *(f"latency {device} (ms)" for device in devices)])
    if points.empty or not devices:
        return None
    figure, panels = _figure(2.4 + 4.6 * len(devices), 4.8, len(devices))
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
    panels[0].set_title(f"average GLUE score against latency, {_count(len(points), 'model')}", loc="left")
    handles: list[Artist] = [_dot(COLOURS["controller"], "model"), Line2D([], [], color=FRONT, label="Pareto front")]
    if teacher in set(points["model"]):
        handles.insert(1, _dot(TEACHER, "teacher"))
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    for axes, device in zip(panels, devices, strict=True):
        spots = points[[f"latency {device} (ms)", "average"]].to_numpy()
        _label(figure, axes, spots, spots, list(points["model"]))
    return figure


def _figure(width: float, height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of that size in inches, and its panels."""
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    every = [figure.add_subplot(1, panels, 1 + panel) for panel in range(panels)]
    for axes in every:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    return figure, every


def _dot(colour: str, label: str, shape: str = "o", size: float = 6) -> Line2D:
    """A legend entry; `size` is the diameter in points."""
    edge = MARK if colour in ("white", "none") else colour
    return Line2D([], [], linestyle="none", marker=shape, color=colour, markeredgecolor=edge, ms=size, label=label)


def _fence(values: np.ndarray | pd.Series) -> float:
    """Where to cut an axis: a few students that diverged must not flatten all the others."""
    low, high = np.percentile(values, [25, 75])
    return float(high + 3 * (high - low) if high > low else values.max())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _shade_episodes(axes: Axes, seen: Sequence[Observation]) -> Patch:
    """Shades every other episode and numbers some of them along the top."""
    starts: dict[int, int] = {}
    for one in seen:
        starts.setdefault(one.episode, one.trial)
    edges = [start - 0.5 for start in starts.values()] + [seen[-1].trial + 0.5]
    every = math.ceil(len(starts) / 15)
    for index, episode in enumerate(starts):
        if index % 2:
            axes.axvspan(edges[index], edges[index + 1], color="0.93", linewidth=0, zorder=0)
        if index % every == 0:
            centre = (edges[index] + edges[index + 1]) / 2
            top = axes.get_xaxis_transform()
            axes.text(centre, 0.99, str(episode + 1), transform=top, ha="center", va="top", color="0.4", fontsize=8)
    return Patch(color="0.93", label="episode (number on top)")


def _draw_tradeoff(axes: Axes, points: pd.DataFrame) -> None:
    """One panel: bubbles (triangles where the loss is cut), the front, and rings around the finalists."""
    for shape, some in points.groupby(np.where(points["loss"] > points["drawn loss"], "^", "o")):
        dots = axes.scatter(some["latency"], some["drawn loss"], some["area"], some["colour"], marker=shape, alpha=0.6)
        dots.set(edgecolor="white", linewidth=0.5)
    front = points.iloc[pareto(list(zip(points["latency"], points["loss"], strict=True)))]
    axes.plot(front["latency"], front["drawn loss"], color=FRONT, linewidth=1.5, drawstyle="steps-post", zorder=3)
    final = points.dropna(subset="rank")
    axes.scatter(final["latency"], final["loss"], final["area"], "none", edgecolors=MARK, linewidths=1.4, zorder=4)
    axes.margins(0.12)
    if 0 < 20 * points["latency"].min() < points["latency"].max():
        axes.set_xscale("log")


def _draw_teacher(axes: Axes, latency: float) -> None:
    """A line where the teacher's latency (ms) is within the panel, else a note that says where it would be."""
    left, right = axes.get_xlim()
    text = f"teacher {latency:.2f} ms"
    if left <= latency <= right:
        axes.axvline(latency, color=TEACHER, linewidth=1.5, linestyle="--")
    else:
        text = f"{text} →" if latency > right else f"← {text}"
    # Above the frame, where no bubble can be.
    share = axes.transAxes.inverted().transform(axes.transData.transform((latency, 0)))[0]
    spot = float(np.clip(share, 0, 1))
    side = "left" if spot < 0.2 else "right" if spot > 0.8 else "center"
    axes.annotate(text, (spot, 1), (0, 2), "axes fraction", "offset points", ha=side, va="bottom", color=TEACHER)


def _label(figure: Figure, axes: Axes, around: ArrayLike, spots: ArrayLike, texts: Sequence[str]) -> None:
    """Writes each text near its spot, inside the axes, over no other text and over few of the points around it."""
    figure.draw_without_rendering()
    # The places are worked out in pixels, so from here on nothing may move.
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
            # The line meets the text where it is nearest to the spot.
            arrowprops={"arrowstyle": "-", "lw": 0.7, "shrinkB": 4, "relpos": tuple((1 - np.sign(offset)) / 2)},
            zorder=5,
        )
