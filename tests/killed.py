"""`python tests/killed.py <epoch> <train.py's arguments>`: train.py, dead at its second step of that epoch."""

import os
import runpy
import signal
import sys
from pathlib import Path

from kdnas.modules import StudentDistiller

step = StudentDistiller.training_step
epoch = int(sys.argv.pop(1))


def training_step(module, batch, index):
    if module.current_epoch == epoch and index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(module, batch, index)


StudentDistiller.training_step = training_step
runpy.run_path(str(Path(__file__).parents[1] / "train.py"), run_name="__main__")
