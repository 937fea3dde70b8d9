"""Measures what a controller costs as a study and its space grow: milliseconds to propose and to tell one candidate.

    python -m benchmarks.ask_tell --out ask_tell.json
    python -m benchmarks.ask_tell feedback random --observations 1000 10000 --spaces 6 9

Whole episodes of 20 are proposed and told as in a search: on a journal in a file, each candidate through a study and a
controller of its own, with the predictor trained and its cache written. The study's earlier observations are made up.
A space of 10^k points is left out where a study would fill more than half of it. CPU time is shown beside wall time,
which is longer where other programs run. No candidate is trained.

What happens only once is shown apart: `open` is the time to read the journal. A predictor without its cache would be
trained from the first episode on; here it begins with untrained weights, which take as long to go on from.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import optuna
import pandas as pd
import torch
from hydra.utils import instantiate
from optuna.trial import TrialState

from benchmarks.controllers import CONTROLLERS, configure
from kdnas.costs.cost import Cost, Latency
from kdnas.models.architecture import Architecture
from kdnas.models.space import SearchSpace
from kdnas.search.controllers import predictor
from kdnas.search.journal import JOURNAL, open_storage
from kdnas.search.proposing import Proposer
from kdnas.search.study import Study

CANDIDATES = 20
HEADS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 48)
DIMENSIONS = {
    2: (5, 2, 5, 2, 1),
    3: (5, 2, 10, 10, 1),
    4: (10, 2, 10, 25, 2),
    5: (10, 5, 20, 50, 2),
    6: (20, 5, 50, 100, 2),
    7: (50, 10, 50, 200, 2),
    8: (50, 10, 200, 200, 5),
    9: (100, 10, 200, 500, 10),
}
"""The numbers of layers, heads, hidden sizes, FFN sizes and activations that make 10^k architectures."""


def space_of(exponent: int) -> SearchSpace:
    """Returns a space of 10^exponent architectures."""
    layers, heads, hidden, ffn, act = DIMENSIONS[exponent]
    return SearchSpace(
        num_hidden_layers=list(range(1, 1 + layers)),
        num_attention_heads=list(HEADS[:heads]),
        hidden_size=[48 * number for number in range(1, 1 + hidden)],
        intermediate_size=[64 * number for number in range(1, 1 + ffn)],
        hidden_act=[f"activation {number}" for number in range(act)],
    )


def tell(study: Study, number: int) -> None:
    """Tells a made-up result: small students are a little better."""
    architecture = study.architecture(number)
    loss = 0.5 + architecture.num_hidden_layers / 1000 + Random(number).gauss(0, 0.01)
    latency = {"cpu": Latency(1.0 + architecture.hidden_size / 1000, 0.1)}
    cost = Cost(architecture.intermediate_size, architecture.hidden_size, latency)
    study.tell(number, 1 - loss, {"loss": loss}, cost, seconds=60.0, export=None)


def fill(folder: Path, space: SearchSpace, controller: Callable[..., Any], observations: int) -> None:
    """Writes a journal of many candidates: the lines of the first one, repeated with other values."""
    study = Study(open_storage(folder))
    start = len((folder / JOURNAL).read_text().splitlines())
    Proposer(space, controller, 0).propose(study, 1, 0)
    tell(study, 0)
    lines = [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()[start:]]
    distributions, rng = Proposer(space, controller, 0).distributions, Random(0)
    seen = {study.architecture(0)}
    with (folder / JOURNAL).open("a") as file:
        for number in range(1, observations):
            while (drawn := Architecture(**{n: rng.choice(v) for n, v in space.dimensions.items()})) in seen:
                pass
            seen.add(drawn)
            params = {name: distributions[name].to_internal_repr(value) for name, value in drawn.to_dict().items()}
            for line in lines:
                line = dict(line)
                if "params" in line:
                    line["params"] = params
                    line["user_attrs"] = {**line["user_attrs"], "episode": number // CANDIDATES}
                    generation = {k: number // CANDIDATES for k in line["system_attrs"] if k.endswith("generation")}
                    line["system_attrs"] = {**line["system_attrs"], **generation}
                else:
                    line["trial_id"] = number
                if line.get("values"):
                    line["values"] = [0.5 - params["num_hidden_layers"] / 1000 + rng.gauss(0, 0.01)]
                file.write(json.dumps(line, separators=(",", ":")) + "\n")


@contextmanager
def untrained() -> Iterator[None]:
    """Makes predictors go through their episodes without a training step, in the block."""
    trained = predictor.learn

    def walk(episodes: Any, sizes: Any, settings: predictor.Settings, *rest: Any) -> predictor.Learned:
        return trained(episodes, sizes, replace(settings, epochs=0), *rest)

    with mock.patch.object(predictor, "learn", walk):
        yield


class Clock:
    """Milliseconds for one candidate: wall time, and CPU time of this process."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        start = time.perf_counter(), time.process_time()
        yield
        end = time.perf_counter(), time.process_time()
        for name, before, after in zip((what, f"{what} (CPU)"), start, end, strict=True):
            self.times.setdefault(name, []).append(1000 * (after - before) / CANDIDATES)


def measure(name: str, exponent: int, observations: int, episodes: int) -> dict[str, Any]:
    """Returns one row of the table."""
    space = space_of(exponent)
    config = configure(name, seed=0, candidates=CANDIDATES)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config.search.dir = temporary
        controller = instantiate(config.controller)
        fill(folder, space, controller, observations)
        start = time.perf_counter()
        study = Study(open_storage(folder))
        opened = time.perf_counter() - start
        storage, clock = study.optuna._storage, Clock()
        first = -(-observations // CANDIDATES)
        for episode in range(first, first + 1 + episodes):
            with clock("ask"):
                if episode == first:
                    with untrained():
                        Proposer(space, controller, 0).propose(study, CANDIDATES, episode)
                else:
                    Proposer(space, controller, 0).propose(study, CANDIDATES, episode)
                jobs = study.jobs()
            with clock("tell"):
                for job in jobs:
                    tell(Study(storage, controller=controller(seed=0)), job.trials[0])
        assert len(study.trials(TrialState.COMPLETE)) == observations + CANDIDATES * (1 + episodes)
    medians = {what: statistics.median(times[1:]) for what, times in clock.times.items()}
    together = {f"both{of}": medians[f"ask{of}"] + medians[f"tell{of}"] for of in ("", " (CPU)")}
    return {"controller": name, "space": f"10^{exponent}", "observations": observations} | {
        **{what: round(value, 1) for what, value in (medians | together).items()},
        "open (s)": round(opened, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = sorted(path.stem for path in CONTROLLERS.glob("*.yaml"))
    parser.add_argument("controllers", nargs="*", default=known, help=f"of {', '.join(known)}; all, if none is given")
    parser.add_argument("--observations", type=int, nargs="+", default=[10, 100, 1_000, 10_000])
    parser.add_argument("--spaces", type=int, nargs="+", default=list(DIMENSIONS), help="their sizes, as powers of 10")
    parser.add_argument("--episodes", type=int, default=3, help="the number to take medians of, after one more")
    parser.add_argument("--out", type=Path, help="a JSON file for the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    rows = []
    for name in args.controllers:
        for exponent in args.spaces:
            for observations in args.observations:
                if 2 * (observations + CANDIDATES * (1 + args.episodes)) <= 10**exponent:
                    rows.append(measure(name, exponent, observations, args.episodes))
                    print(rows[-1], flush=True)
    print("", pd.DataFrame(rows).to_string(index=False), sep="\n")
    if args.out:
        args.out.write_text(json.dumps({"settings": {**vars(args), "out": str(args.out)}, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
