"""A plot of the candidates' rewards."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from kdnas.reports.plots.drawing import COLOURS, MARK, ORIGINS, counted, dot, fence, label_spots, new_figure, points_to
from kdnas.reports.results import Results
from kdnas.search.observation import Observation


def reward_plot(results: Results) -> Figure | None:
    """Plots reward against trial number, with the best so far, the episodes, who chose, and the finalists.

    A finalist's star is at the reward of mini-KD; an arrow leads to the reward of the full distillation.
    """
    every = [one.mini for one in results.ranking]
    seen = sorted((one for one in every if math.isfinite(one.reward)), key=lambda one: one.trial)
    if not seen:
        return None
    figure, (axes,) = new_figure(9.5, 4.8)
    rewards = np.array([one.reward for one in seen])
    trials = np.array([one.trial for one in seen])
    floor = -fence(-rewards)
    shown = np.maximum(rewards, floor)
    handles: list[Artist] = [_shade_episodes(axes, seen)]
    for origin, colour in COLOURS.items():
        chosen = np.array([one.origin == origin for one in seen])
        handles.append(dot(colour, ORIGINS[origin]))
        for inside, shape in ((rewards >= floor, "o"), (rewards < floor, "v")):
            drawn = chosen & inside
            axes.scatter(trials[drawn], shown[drawn], 22, colour, marker=shape, alpha=0.75, linewidths=0)
    if (rewards < floor).any():
        handles.append(dot("grey", f"below {floor:.3g}", "v"))
    margin = 0.5 + 0.015 * np.ptp(trials)
    best = np.maximum.accumulate(shown)
    axes.plot([*trials, trials[-1] + margin], [*best, best[-1]], color=MARK, linewidth=1.2, drawstyle="steps-post")
    handles.append(Line2D([], [], color=MARK, linewidth=1.2, label="best so far"))
    finalists = [one for one in results.finalists if math.isfinite(one.mini.reward)]
    spots = [(one.mini.trial, max(one.mini.reward, floor)) for one in finalists]
    if finalists:
        colours = [COLOURS[one.mini.origin] for one in finalists]
        across, up = np.transpose(spots)
        axes.scatter(across, up, 130, colours, marker="*", edgecolors=MARK, zorder=4)
        handles.append(dot("white", "finalist #rank", "*", 11))
    full = [(one.mini.trial, max(one.full.reward, floor)) for one in finalists if one.full]
    starts = [spot for spot, one in zip(spots, finalists, strict=True) if one.full]
    for start, end in zip(starts, full, strict=True):
        points_to(axes, start, end)
    if full:
        across, up = np.transpose(full)
        axes.scatter(across, up, 40, "white", marker="D", edgecolors=MARK, zorder=5)
        handles.append(dot("white", "after full distillation", "D"))
    axes.set(xlabel="candidate (trial number)", ylabel="reward", xlim=(trials[0] - margin, trials[-1] + margin))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(y=0.12)
    episodes = counted(len({one.episode for one in seen}), "episode")
    axes.set_title(f"{results.name}\nreward of {counted(len(seen), 'candidate')} in {episodes}", loc="left")
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    if finalists:
        label_spots(figure, axes, np.transpose([trials, shown]), spots, [f"#{one.rank}" for one in finalists])
    return figure


def _shade_episodes(axes: Axes, seen: Sequence[Observation]) -> Patch:
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
