"""Which held-out metric compares models, and which of two of its values is the better."""

from collections.abc import Iterable, Mapping

LOSS = "loss"


def is_loss(name: str) -> bool:
    """Returns whether less of a metric is better: of the loss, and of each term's (`loss_<term>`)."""
    return name == LOSS or name.startswith(f"{LOSS}_")


def deciding_metric(metrics: Iterable[str]) -> str:
    """Returns the name of the metric that models are compared by: the first that is no loss, or else the loss."""
    return next((name for name in metrics if not is_loss(name)), LOSS)


def quality(metrics: Mapping[str, float], name: str | None = None) -> float:
    """Returns a metric (None: the deciding one) as a number of which more is better: losses are negated."""
    name = deciding_metric(metrics) if name is None else name
    return -metrics[name] if is_loss(name) else metrics[name]
