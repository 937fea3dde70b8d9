"""Tasks: what a model learns to predict, and how its predictions are scored."""

from kdnas.tasks.base import LabelledTask, Task
from kdnas.tasks.classification import Classification, MaskedTokens
from kdnas.tasks.regression import Regression

__all__ = ["Classification", "LabelledTask", "MaskedTokens", "Regression", "Task"]
