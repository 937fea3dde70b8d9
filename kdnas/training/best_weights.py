"""The weights that did best on held-out data, kept while training goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn


class BestWeights:
    """Each trainee's weights at its best held-out score so far, on the CPU.

    A score that is not a number is the last word on its trainee: what diverged is not saved by what it was before.

    Args:
        trainees: each has its own best.
    """

    def __init__(self, trainees: Sequence[nn.Module]) -> None:
        self.trainees = trainees
        self.kept: dict[str, dict[str, Any]] = {}

    def update(self, scores: Sequence[float]) -> None:
        """Keeps the weights of every trainee whose score (larger is better) beats its best; the first of equals."""
        for i, (trainee, score) in enumerate(zip(self.trainees, scores, strict=True)):
            best = self.kept[str(i)]["score"] if str(i) in self.kept else -math.inf
            if math.isnan(score) or score > best:
                weights = {name: value.detach().cpu().clone() for name, value in trainee.state_dict().items()}
                self.kept[str(i)] = {"score": score, "weights": weights}

    def restore(self) -> None:
        """Sets every trainee back to its best weights, if there are any, and forgets them."""
        for i, kept in self.kept.items():
            self.trainees[int(i)].load_state_dict(kept["weights"])
        self.kept = {}

    def state_dict(self) -> dict[str, Any]:
        return self.kept

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.kept = dict(state)
