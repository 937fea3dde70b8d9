"""Searches for the student that best distils a teacher: python search.py +experiment=demo"""

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="search")
def main(cfg: DictConfig) -> dict[str, float]:
    from kdnas.runner import run

    return run(cfg)


if __name__ == "__main__":
    main()
