"""Which held-out metric compares models, and which of two of its values is the better."""

from collections.abc import Mapping

LOSS = "loss"
"""The only metric of which less is better: a task refuses a deciding metric of that kind."""


def deciding_metric(metrics: Mapping[str, float]) -> str:
    """Returns the name of the metric that models are compared by: the first, or the loss if there is no other."""
    return next((name for name in metrics if name != LOSS), LOSS)


def quality(metrics: Mapping[str, float], name: str | None = None) -> float:
    """Returns a metric (None: the deciding one) as a number of which more is better: the loss is negated."""
    name = deciding_metric(metrics) if name is None else name
    return -metrics[name] if name == LOSS else metrics[name]
