"""Searches for the student that best distils a teacher: python search.py +experiment=demo"""

import os

# Threads that spin at a barrier stall each other for seconds where the host has other work; set before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from omegaconf import DictConfig

from kdnas.command import command


@command("search")
def main(cfg: DictConfig) -> dict[str, float]:
    from kdnas.runner import run

    return run(cfg)


if __name__ == "__main__":
    main()
