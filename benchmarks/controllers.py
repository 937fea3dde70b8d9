"""Compares controllers on a search with a known answer: a smooth reward over the 2400 architectures, and noise.

    python -m benchmarks.controllers --seeds 10 --out controllers.json
    python -m benchmarks.controllers random feedback "feedback learning_rate=1e-3 epochs=30"

A controller is a name in conf/controller, with overrides if any. Only the controllers' own models are trained.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import optuna
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from optuna.trial import TrialState
from scipy.stats import spearmanr

from kdnas.costs.cost import Cost
from kdnas.models.architecture import Architecture
from kdnas.models.space import SearchSpace
from kdnas.search.proposing import Proposer
from kdnas.search.study import Study

CONF = Path(__file__).resolve().parent.parent / "conf"
CONTROLLERS = CONF / "controller"
NOISE = 0.005
"""The standard deviation of rewards from the true ones: a fifth of the true rewards' own deviation over the space."""
LEARNED = 10
"""The number of episodes after which the predictions are compared with the truth."""


def space() -> SearchSpace:
    """Loads the papers' space from its config, without the constraints that need a teacher."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose("space/kdnas").space, constraints=[])


SPACE = space()


def latency(layers: int, hidden: int, ffn: int) -> float:
    """Returns a simulated latency: the multiplications for a token, and a constant for each layer."""
    return layers * (4 * hidden**2 + 2 * hidden * ffn + 150_000)


def true_reward(candidate: Architecture) -> float:
    """Returns v2's Eq. 4, with a loss that falls with every size and is least with 6 heads and gelu."""
    layers, hidden, ffn = candidate.num_hidden_layers, candidate.hidden_size, candidate.intermediate_size
    size = (layers / 3) ** 0.7 * (hidden / 192) ** 0.8 * (ffn / 384) ** 0.25
    heads = 0.006 * math.log2(candidate.num_attention_heads / 6) ** 2
    loss = 0.03 + 0.28 / size + heads + {"gelu": 0, "silu": 0.003, "relu": 0.01}[candidate.hidden_act]
    return (1 - loss) * (latency(layers, hidden, ffn) / (0.6 * latency(12, 768, 3072))) ** -0.06


TRUE = {member: true_reward(member) for member in SPACE.members}
BEST = max(TRUE.values())


def search(config: DictConfig, seed: int, episodes: int) -> dict[str, float]:
    """Runs one simulated search and returns how good its candidates and predictions are."""
    with TemporaryDirectory() as folder:  # for the predictor's cache
        config.search.dir = folder
        return play(config, seed, episodes)


def play(config: DictConfig, seed: int, episodes: int) -> dict[str, float]:
    """Runs the episodes of a simulated search (see `search`)."""
    started = time.process_time()
    controller: Callable[..., Any] = instantiate(config.controller)
    study = Study(optuna.storages.InMemoryStorage())
    result: dict[str, float] = {}
    for episode in range(episodes):
        Proposer(SPACE, controller, seed).propose(study, config.search.candidates, episode)
        for trial in study.trials(TrialState.RUNNING):
            candidate = Architecture.of(trial.params)
            # Seeded by the architecture, so that every controller gets the same noise.
            reward = TRUE[candidate] + Random(f"{seed} {candidate}").gauss(0, NOISE)
            study.tell(trial.number, reward, {"loss": 0.0}, Cost(0, 0, {}))
        sampler = controller(seed=seed)
        if episode + 1 == min(LEARNED, episodes) and hasattr(sampler, "expected"):
            points, expected = zip(*sampler.expected(study.optuna), strict=True)
            result["rho"] = spearmanr(expected, [TRUE[Architecture.of(point)] for point in points]).statistic
    seen = sorted(study.observations, key=lambda one: -one.reward)
    best = max(TRUE[one.architecture] for one in seen)
    return {
        **result,
        "regret": BEST - best,
        "rank": 1 + sum(reward > best for reward in TRUE.values()),
        "chosen_regret": BEST - TRUE[seen[0].architecture],
        "mean_regret": BEST - float(np.mean([TRUE[one.architecture] for one in seen])),
        "seconds": time.process_time() - started,
    }


def configure(text: str, seed: int, candidates: int) -> DictConfig:
    """Composes a controller's config with the settings that it refers to."""
    name, *overrides = text.split()
    with initialize_config_dir(str(CONTROLLERS), version_base="1.3"):
        controller = compose(name, overrides)
    around = {"seed": seed, "search": {"candidates": candidates, "dir": "."}, "controller": controller}
    return OmegaConf.create(around)


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Formats the means over the seeds in Markdown."""
    columns = {
        "rho": ("rho of predictions", ".3f"),
        "regret": ("regret of best found", ".4f"),
        "rank": (f"its rank of {len(TRUE)}", ".1f"),
        "chosen_regret": ("regret of highest reward", ".4f"),
        "mean_regret": ("mean regret", ".4f"),
        "seconds": ("CPU seconds", ".1f"),
    }
    lines = ["| controller | " + " | ".join(title for title, _ in columns.values()) + " |", "|---" * 7 + "|"]
    for name, runs in results.items():
        cells = []
        for key, (_, form) in columns.items():
            values = [run[key] for run in runs if key in run]
            cells.append(f"{np.mean(values):{form}} ± {np.std(values):{form}}" if values else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = sorted(path.stem for path in CONTROLLERS.glob("*.yaml"))
    parser.add_argument("controllers", nargs="*", default=known, help=f"of {', '.join(known)}; all, if none is given")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--episodes", type=int, default=15)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--out", type=Path, help="a JSON file for the results of every run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    results: dict[str, list[dict[str, float]]] = {}
    for name in args.controllers:
        seeds = [1000 * number for number in range(args.seeds)]
        results[name] = [search(configure(name, seed, args.candidates), seed, args.episodes) for seed in seeds]
        print(table({name: results[name]}).splitlines()[-1], flush=True)
    print("", table(results), sep="\n")
    if args.out:
        args.out.write_text(json.dumps({"settings": {**vars(args), "out": str(args.out)}, "runs": results}, indent=1))


if __name__ == "__main__":
    main()
