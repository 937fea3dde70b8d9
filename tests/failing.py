"""An objective that fails for some students, for the tests of what a search does then."""

from kdnas.distillation.objectives import HiddenStateObjective
from kdnas.distillation.recipes import Recipe, Stage
from kdnas.models import Encoder


def for_wide_students():
    """As `kdnas.distillation.recipes.hidden_states`, for students up to a hidden size of 16."""

    def objective(student, teacher):
        if student.hidden_size > 16:
            raise MemoryError(f"no room for a hidden size of {student.hidden_size}")
        return HiddenStateObjective(student, teacher)

    return Recipe(Encoder(), [Stage("hidden states", objective)])
