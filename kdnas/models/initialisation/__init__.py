"""Student sources: where the weights of a student's encoder begin. A config picks one (`conf/student/init`)."""

from kdnas.models.initialisation.checkpoint import PretrainedWeights
from kdnas.models.initialisation.source import RandomWeights, StudentSource, TeacherAndText, Text

__all__ = ["PretrainedWeights", "RandomWeights", "StudentSource", "TeacherAndText", "Text"]
