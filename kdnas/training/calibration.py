"""What loss terms are fitted to the teacher by, before training."""

from collections.abc import Callable, Collection, Iterable

import torch
from transformers import BatchEncoding

from kdnas.base.host import QuietHost
from kdnas.models.features import Feature, Features
from kdnas.training.trainer import total


@torch.no_grad()
def feature_variances(
    batches: Iterable[BatchEncoding],
    features: Collection[Feature],
    teacher: Callable[[BatchEncoding, Collection[Feature]], Features],
    device: torch.device,
) -> dict[Feature, float]:
    """Returns the variance of each of the teacher's features over the items of all devices, averaged over the width."""
    zero = torch.zeros((), dtype=torch.double, device=device)
    counts, sums, squares = (dict.fromkeys(sorted(features), zero) for _ in range(3))
    with QuietHost().busy():
        for batch in batches:
            for feature, values in teacher(batch.to(device), features).items():
                counts[feature] = counts[feature] + len(values)
                sums[feature] = sums[feature] + values.double().sum(0)
                squares[feature] = squares[feature] + values.double().square().sum(0)

    def variance(feature: Feature) -> float:
        mean, square = (total(moment[feature]) / total(counts[feature]) for moment in (sums, squares))
        return float((square - mean.square()).mean())

    return {feature: variance(feature) for feature in counts}
