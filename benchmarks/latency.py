"""Measures every architecture of a space into the latency table, and some of them twice.

    python benchmarks/latency.py +experiment=minilm teacher.path=<folder or hub id>

Run it while the host does nothing else: what a busy host gives is not kept. A search that follows reads the table
(`latency.table`), and `python -m kdnas.costs <table>` lists it.
"""

import sys
from random import Random

import hydra
from omegaconf import DictConfig
from tqdm import tqdm

from kdnas.base.config import instantiate
from kdnas.models.loading import load_config
from kdnas.models.resizing import student_config

TWICE = 12
"""Architectures that are measured again, to see whether the two medians agree within their spreads."""


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(cfg: DictConfig) -> None:
    costs = instantiate(cfg.latency)
    teacher = load_config(cfg.teacher.path)
    members = instantiate(cfg.space).members
    configs = {member: student_config(teacher, member) for member in members}
    for target in costs.targets:
        print(f"teacher on {target}: {costs.latency(teacher, target)}")
        shown = tqdm(configs.values(), desc=str(target), disable=not sys.stderr.isatty())
        busy = sum(costs.latency(config, target).busy for config in shown)
        if busy:
            print(f"{busy} of {len(configs)} could not be measured, the host is busy; the same command goes on")
        print(f"| architecture | first, ms on {target} | second | difference / (spread + spread) |\n|---|---|---|---|")
        for member in Random(0).sample(members, min(TWICE, len(members))):
            first, second = costs.latency(configs[member], target), costs.measure(configs[member], target)
            share = abs(first.median - second.median) / (first.spread + second.spread)
            row = f"{first.median:.3f} ± {first.spread:.3f} | {second.median:.3f} ± {second.spread:.3f} | {share:.2f}"
            print(f"| {member} | {row} |")


if __name__ == "__main__":
    main()
