"""Distils or pre-trains one architecture in full, or fine-tunes what was distilled: python train.py +experiment=demo"""

import os
import sys

# Threads that spin at a barrier stall each other for seconds where the host has other work; set before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> dict[str, float]:
    from kdnas.errors import ConfigError
    from kdnas.runner import run

    try:
        return run(cfg)
    except ConfigError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise HydraException(f"error: {error}") from None  # an exit would end the other jobs too
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
