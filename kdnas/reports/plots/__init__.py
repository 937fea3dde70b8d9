"""Plots as matplotlib figures (Agg, no pyplot state); every function returns None where there is no data."""

from kdnas.reports.plots.controller import controller_plot
from kdnas.reports.plots.pareto import pareto_plot
from kdnas.reports.plots.reward import reward_plot
from kdnas.reports.plots.scores import score_plot

__all__ = ["controller_plot", "pareto_plot", "reward_plot", "score_plot"]
