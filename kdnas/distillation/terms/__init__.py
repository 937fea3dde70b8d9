"""Loss terms: what a student is trained to match. A term belongs to one student and owns what it learns beside it."""

from kdnas.distillation.terms.attention import AttentionMaps
from kdnas.distillation.terms.base import LossTerm, Mean
from kdnas.distillation.terms.predictions import HardLabels, Logits, MaskedTokens, SoftTargets
from kdnas.distillation.terms.relations import Relations
from kdnas.distillation.terms.states import Embeddings, HiddenStates, LastHiddenState

__all__ = [
    "AttentionMaps",
    "Embeddings",
    "HardLabels",
    "HiddenStates",
    "LastHiddenState",
    "Logits",
    "LossTerm",
    "MaskedTokens",
    "Mean",
    "Relations",
    "SoftTargets",
]
