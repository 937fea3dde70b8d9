"""The papers' GLUE table from finished runs: python glue.py teacher.label=<label>"""

import os

# As in `train.py`: latencies are only comparable where they are measured alike.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from omegaconf import DictConfig

from kdnas.command import command


@command("glue")
def main(cfg: DictConfig) -> None:
    from kdnas.glue import report

    report(cfg)


if __name__ == "__main__":
    main()
