"""LightningModules: the student distiller and the fine-tuner."""

from kdnas.modules.distiller import StudentDistiller
from kdnas.modules.finetuner import FineTuner

__all__ = ["FineTuner", "StudentDistiller"]
