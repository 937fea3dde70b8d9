"""Fits the units of loss terms to the teacher, before training."""

from collections.abc import Callable, Collection, Iterable, Sequence

import torch
from transformers import BatchEncoding

from kdnas.base.host import QuietHost
from kdnas.distillation.terms import LossTerm
from kdnas.models.features import Feature, Features
from kdnas.training.trainer import total


@torch.no_grad()
def calibrate(
    terms: Sequence[LossTerm],
    batches: Iterable[BatchEncoding],
    teacher: Callable[[BatchEncoding, Collection[Feature]], Features],
    device: torch.device,
) -> None:
    """Calibrates loss terms by the teacher's features of the held-out items of all devices (`LossTerm.calibrate`)."""
    features = frozenset[Feature]().union(*(term.normalized_by for term in terms))
    zero = torch.zeros((), dtype=torch.double, device=device)
    counts, sums, squares = (dict.fromkeys(sorted(features), zero) for _ in range(3))
    losses, items = ([zero for _ in terms] for _ in range(2))
    with QuietHost().busy():
        for batch in batches:
            batch = batch.to(device)
            found = teacher(batch, features)
            for i, term in enumerate(terms):
                mean = term.reference(found, batch)
                losses[i], items[i] = losses[i] + mean.total.double(), items[i] + mean.count
            for feature, values in found.items():
                counts[feature] = counts[feature] + len(values)
                sums[feature] = sums[feature] + values.double().sum(0)
                squares[feature] = squares[feature] + values.double().square().sum(0)

    def variance(feature: Feature) -> float:
        mean, square = (total(moment[feature]) / total(counts[feature]) for moment in (sums, squares))
        return float((square - mean.square()).mean())

    variances = {feature: variance(feature) for feature in counts}
    for term, loss, count in zip(terms, losses, items, strict=True):
        term.calibrate(variances, float(total(loss) / total(count)))
