"""A command as `train.py`, whose job says its process and sleeps: `python tests/sleeping.py -m seed=0,1`."""

import os
import sys
import time

from kdnas.base.signals import listen

listen()

from kdnas.app.command import Command  # noqa: E402


def main(cfg):
    print(f"process {os.getpid()} sleeps", file=sys.stderr, flush=True)
    time.sleep(600)


if __name__ == "__main__":
    Command("train", main)()
