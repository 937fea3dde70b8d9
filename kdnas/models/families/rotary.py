"""Encoders with rotary positions, which have no longest input: EuroBERT, NomicBERT and others."""

import math

from transformers import PreTrainedConfig

from kdnas.models.families.base import Family, register


@register("nomic_bert", "gte", "jina_embeddings_v3")
class Rotary(Family):
    layers = "layers"

    def positions(self, config: PreTrainedConfig) -> float:
        return math.inf


@register("eurobert", "esmc", "ultrabert")
class EuroBert(Rotary):
    """Word embeddings alone below the first layer."""

    embeddings = ("embed_tokens",)
