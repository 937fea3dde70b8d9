"""Loss terms that fail for some students, for the tests of what a search does then."""

import os
import signal
import sys
import time
from pathlib import Path

import torch

from kdnas.distillation.terms import HiddenStates, Mean

TERM = "objective.hidden_states.terms.hidden_states"


class ForWideStudents(HiddenStates):
    """Hidden-state transfer, for students up to a hidden size of 16."""

    def build(self, student, teacher):
        if student.hidden_size > 16:
            raise MemoryError(f"no room for a hidden size of {student.hidden_size}")
        super().build(student, teacher)


class Unreadable(Exception):
    """Cannot be unpickled: what it is made from is not what it is made of."""

    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


def kill(marks):
    os.kill(os.getpid(), signal.SIGKILL)


def kill_once(marks):
    if not (marks / "killed").exists():
        (marks / "killed").touch()
        kill(marks)


def unreadable(marks):
    raise Unreadable("one", "other")


def wrong(marks):
    raise ArithmeticError("this student is impossible")


FATES = {
    32: None,
    34: wrong,
    36: lambda marks: sys.exit(3),
    38: unreadable,
    40: lambda marks: torch.empty(2**50),  # more memory than there is
    42: lambda marks: float("nan"),
    44: lambda marks: time.sleep(11),
    46: kill_once,
    48: kill,
    50: None,
}
"""The fate of a student in its first training step, by its intermediate size."""
SLEEPER = 50
"""The intermediate size of a student that sleeps before: in a step, nobody could measure a latency meanwhile."""


class Fateful(HiddenStates):
    """Hidden-state transfer, until a student's fate overtakes it in its first training step.

    Args:
        marks: a folder for what has to be remembered from one process to the next.
    """

    def __init__(self, marks, **settings):
        super().__init__(**settings)
        self.marks = Path(marks)

    def build(self, student, teacher):
        super().build(student, teacher)
        self.fate = FATES[student.intermediate_size]
        if student.intermediate_size == SLEEPER:
            time.sleep(300)

    def forward(self, student, teacher, batch):
        loss = super().forward(student, teacher, batch)
        if self.training and self.fate:
            factor, self.fate = self.fate(self.marks), None
            return Mean(loss.value * factor, loss.count) if isinstance(factor, float) else loss
        return loss
