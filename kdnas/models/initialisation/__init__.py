"""Student sources: where the weights of a student's encoder begin. A config picks one (`conf/student/init`)."""

from kdnas.models.initialisation.checkpoint import PretrainedWeights
from kdnas.models.initialisation.source import (
    KNOWN,
    TOKENS,
    MatchedRelations,
    RandomWeights,
    StudentSource,
    TeacherAndText,
    Text,
)
from kdnas.models.initialisation.teacher import TeacherEmbeddings, TeacherLayers

__all__ = [
    "KNOWN",
    "TOKENS",
    "MatchedRelations",
    "PretrainedWeights",
    "RandomWeights",
    "StudentSource",
    "TeacherAndText",
    "TeacherEmbeddings",
    "TeacherLayers",
    "Text",
]
