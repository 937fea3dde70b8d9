"""Measures what a candidate and an episode cost besides the training itself, in each launcher.

    python -m benchmarks.starts +experiment=demo --launchers basic joblib local

Runs a search of two episodes of three candidates, without finalists, with each launcher, one job at a time. The study
has the times at which the candidates ended, and their profiles how long they trained. The time between two candidates
of an episode, less the training of the second, is the overhead of a candidate. The time between the last candidate of
an episode and the first of the next, less its training and the overhead of a candidate, is the overhead of an episode.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from optuna.trial import TrialState
from tabulate import tabulate

from benchmarks.race import machine
from kdnas.search.journal import open_storage
from kdnas.search.study import Study

ROOT = Path(__file__).resolve().parent.parent
LAUNCHERS = ("basic", "joblib", "local")
TRAINING = ["asking the teacher", "loading batches", "students: forward", "students: backward"]
TRAINING += ["students: side by side", "optimizer", "held-out rows", "latency"]
"""The parts of a profile that are work on the candidate itself."""


def measure(launcher: str, overrides: list[str], folder: str) -> dict[str, Any]:
    """Runs a search with a launcher; returns its overheads and training times, in seconds, and the profiles."""
    command = [sys.executable, "search.py", *overrides, f"hydra/launcher={launcher}", f"paths.runs={folder}"]
    command += ["search.episodes=2", "search.candidates=3", "search.finalists=0", "search.gang=1", "profile=true"]
    command += [f"search.dir={folder}/{launcher}", *(["hydra.launcher.n_jobs=1"] if launcher != "basic" else [])]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    search = Path(folder) / launcher
    trials = Study(open_storage(search)).trials(TrialState.COMPLETE)
    ended = [trial.datetime_complete for trial in trials]
    profiles = [pd.read_csv(search / f"mini/{trial.number:04d}/profile.csv").set_index("part") for trial in trials]
    trained = [float(profile["seconds"].reindex(TRAINING).sum()) for profile in profiles]
    between = [(b - a).total_seconds() for a, b in pairwise(ended) if a and b]
    overhead = [gap - own for gap, own in zip(between, trained[1:], strict=True)]
    candidate = median(overhead[i] for i in range(len(overhead)) if i != 2)
    whole = median(gap for i, gap in enumerate(between) if i != 2)
    return {
        "launcher": launcher,
        "candidate": candidate,
        "episode": overhead[2] - candidate,
        "training": median(trained),
        "share": candidate / whole,
        "profiles": [profile["seconds"].to_dict() for profile in profiles],
    }


def table(results: list[dict[str, Any]]) -> str:
    rows = [
        [one["launcher"], *(f"{one[key]:.2f}" for key in ("candidate", "episode", "training")), f"{one['share']:.1%}"]
        for one in results
    ]
    headers = ["launcher", "a further candidate (s)", "an episode (s)", "training of one (s)", "share of the time"]
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--launchers", nargs="+", default=list(LAUNCHERS), choices=list(LAUNCHERS))
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        results = [measure(launcher, args.overrides, folder) for launcher in args.launchers]
    print(table(results))
    if args.out:
        args.out.write_text(json.dumps({"machine": machine("cpu"), "results": results}, indent=1))


if __name__ == "__main__":
    main()
