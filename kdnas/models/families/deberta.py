"""DeBERTa, version 1 and 2 (and 3, which has the configs of 2)."""

import math
from collections.abc import Callable, Mapping

from transformers import PreTrainedConfig

from kdnas.models.architecture import Architecture
from kdnas.models.families.base import Family, register


@register("deberta", "deberta-v2")
class Deberta(Family):
    """Relative positions, with or without absolute ones beside them; the pooler's size is the hidden size."""

    derived: Mapping[str, Callable[[Architecture], int]] = {
        **Family.derived,
        "pooler_hidden_size": lambda own: own.hidden_size,
    }

    def positions(self, config: PreTrainedConfig) -> float:
        return super().positions(config) if config.position_biased_input else math.inf
