"""The papers' GLUE table from finished runs: python glue.py teacher.label=<label>"""

import os
import sys

# As in `train.py`: latencies are only comparable where they are measured alike.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="glue")
def main(cfg: DictConfig) -> None:
    from kdnas.errors import ConfigError
    from kdnas.glue import report

    try:
        report(cfg)
    except ConfigError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
