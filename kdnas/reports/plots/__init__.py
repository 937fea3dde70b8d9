"""Plots of a search: rewards, quality against latency, the controller's predictions; and one of GLUE scores.

Every function returns a matplotlib `Figure` (Agg, no pyplot state), or None where there is no data.
"""

from kdnas.reports.plots.controller import controller_plot
from kdnas.reports.plots.reward import reward_plot
from kdnas.reports.plots.scores import score_plot
from kdnas.reports.plots.tradeoff import pareto_plot

__all__ = ["controller_plot", "pareto_plot", "reward_plot", "score_plot"]
