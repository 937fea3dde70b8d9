"""Pictures of a search: what was earned, what it costs, how well the controller knew. And GLUE in one.

Every function gives a matplotlib `Figure` (Agg, no pyplot state), or None where there is nothing to draw.
"""

from kdnas.reports.plots.controller import controller_plot
from kdnas.reports.plots.reward import reward_plot
from kdnas.reports.plots.scores import score_plot
from kdnas.reports.plots.tradeoff import pareto_plot

__all__ = ["controller_plot", "pareto_plot", "reward_plot", "score_plot"]
