"""The best weights of each model by held-out data, kept in memory during the training."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn


class BestWeights:
    """Each trainee's weights at its best held-out score so far, on the CPU.

    A score of NaN replaces all earlier ones: a trainee that has diverged does not fall back on weights of before.
    """

    def __init__(self, trainees: Sequence[nn.Module]) -> None:
        self.trainees = trainees
        self.kept: dict[str, dict[str, Any]] = {}

    def update(self, scores: Sequence[float]) -> None:
        """Keeps the weights of each trainee whose score (larger is better) is above its best so far."""
        for i, (trainee, score) in enumerate(zip(self.trainees, scores, strict=True)):
            best = self.kept[str(i)]["score"] if str(i) in self.kept else -math.inf
            if math.isnan(score) or score > best:
                weights = {name: value.detach().cpu().clone() for name, value in trainee.state_dict().items()}
                self.kept[str(i)] = {"score": score, "weights": weights}

    def restore(self) -> None:
        """Loads each trainee's best weights, if there are any, into the trainee, and drops the copies."""
        for i, kept in self.kept.items():
            self.trainees[int(i)].load_state_dict(kept["weights"])
        self.kept = {}

    def state_dict(self) -> dict[str, Any]:
        return self.kept

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.kept = dict(state)
