"""Measures how throughput scales: with gangs, workers, the cache, rows, students, batches, and with packed rows.

    python -m benchmarks.scaling --data <folder or hub id> --tokenizer <folder or hub id> --out scaling.json

One setting is changed at a time, from a student of [4, 12, 288, 768, gelu] on batches of 32 rows of up to 128 tokens,
with the teacher's outputs in memory. Every run has a process of its own, one after the other. The table has medians of
the repeats, and ratios to the first row of a question. Run it while the host does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tabulate import tabulate

from benchmarks.contenders import HIDDEN_STATES, PRECISIONS, Clock, Course, kdnas
from benchmarks.race import SHAPED, machine, parser_of, shaped_teacher
from benchmarks.relations import plain_relations
from kdnas.models import forward
from kdnas.models.architecture import Architecture

BASE = {"outputs": "memory", "students": 1, "student": [4, 12, 288, 768, "gelu"], "more": [], "workers": 1}
BASE |= {"packed": True, "work": HIDDEN_STATES, "loop": "kdnas"}
MASKED_LM = {
    "outputs": "online",
    "student": [6, 12, 384, 1536, "gelu"],
    "work": [
        *(
            "objective=masked_lm",
            "objective.representation.epochs=0",
            "objective.tokens.epochs=null",
            "objective.tokens.learning_rate=null",
        ),
        *("data=wikipedia", "data/masking=bert", "data.name=mnli", "data.columns=[premise,hypothesis]"),
        *("data.sentences=false", "data.validation=validation_matched"),
    ],
}
"""Masked language modelling of MNLI's pairs, by a student of MiniLM's shape."""

STATES_AND_MAPS = [f"objective.transfer.{name}=null" for name in ("epochs", "learning_rate")]
STATES_AND_MAPS += ["objective.prediction.epochs=0"]
"""TinyBERT's first stage alone."""


def of(objective: str, *more: str) -> dict[str, Any]:
    """The setting of an objective for text."""
    return {"work": ["data=glue", "task=mnli", f"objective={objective}", *more]}


QUESTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "gangs-online": {str(k): {"outputs": "online", "students": k} for k in (1, 2, 4, 8)},
    "gangs": {str(k): {"students": k} for k in (1, 2, 4, 8)},
    "workers": {str(k): {"workers": k} for k in (1, 2)},
    "cached batches": {str(n): {"outputs": "disk", "steps": n} for n in (8, 32, 128)},
    "outputs": {name: {"outputs": name} for name in ("memory", "disk", "online")},
    "lengths": {str(n): {"more": [f"data.max_length={n}"]} for n in (128, 64, 32)},
    "rows": {str(n): {"more": [f"data.batch_size={n}"]} for n in (32, 8, 128)},
    "batches": {"32 rows": {}} | {str(n): {"more": [f"data.batch_tokens={n}"]} for n in (1024, 4096)},
    "students": {
        str(sizes): {"student": sizes}
        for sizes in ([4, 12, 288, 768, "gelu"], [3, 3, 192, 384, "relu"], [6, 12, 384, 1536, "gelu"])
    },
    "masked-lm": {"padded": MASKED_LM | {"packed": False}, "packed": MASKED_LM},
    "objectives": {
        "hidden_states": {},
        "minilmv2": of("minilmv2"),
        "autodistil": of("autodistil"),
        "tinybert": of("tinybert", "objective.task=null", *STATES_AND_MAPS),
        "minilmv2, teacher online": of("minilmv2") | {"outputs": "online"},
        "minilmv2, a plain loop": {"loop": "relations"},
    },
    "compiled": {"no": {}, "yes": {"more": ["module.compile=true"]}},
}
"""The questions: for each, settings by their names in the table. The first setting is the one to compare with.

`workers` is a number of processes that each train a candidate on their share of the threads, as a launcher's workers.
"""
LARGER = {"gangs-online": [16, 32], "gangs": [16, 32]}
"""Larger gangs, for an accelerator."""


def run_one(args: argparse.Namespace) -> dict[str, float]:
    """Returns the real tokens per second of all students, and the peak of the memory in bytes."""
    chosen = BASE | json.loads(args.one)
    steps = chosen.get("steps", args.steps)
    if not chosen["packed"]:
        forward.WAYS = forward.WAYS[1:]
    course = Course(args.teacher, args.data, steps, args.epochs, 32, torch.device(args.accelerator), args.work)
    clock = Clock(course.device)
    student = Architecture(*chosen["student"])
    precision = PRECISIONS[args.precision]
    if chosen["loop"] == "relations":
        plain_relations(course, clock)
    else:
        groups = chosen["work"], chosen["more"]
        kdnas(course, clock, chosen["outputs"], chosen["students"], precision, student, *groups)
    measured = clock.measured()
    memory = torch.cuda.max_memory_allocated() if course.device.type == "cuda" else 0
    return {"tokens_per_s": chosen["students"] * measured["tokens"] / measured["seconds"], "memory": memory}


def apart(args: argparse.Namespace, setting: dict[str, Any]) -> dict[str, float] | None:
    """Runs a setting in new processes, one for each worker; returns None if one failed, as without enough memory."""
    workers = (BASE | setting)["workers"]
    command = [sys.executable, "-m", "benchmarks.scaling", "--one", json.dumps(setting)]
    for key in ("teacher", "data", "steps", "epochs", "accelerator", "precision"):
        command += [f"--{key}", str(getattr(args, key))]
    share = os.environ | {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // workers))}
    with TemporaryDirectory(dir=args.work) as name:
        folders = [Path(name) / str(i) for i in range(workers)]
        running = [
            subprocess.Popen(
                [*command, "--work", str(folder), "--out", str(Path(name) / f"{i}.json")],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env=share,
            )
            for i, folder in enumerate(folders)
        ]
        for process, (_, errors) in [(process, process.communicate()) for process in running]:
            if process.returncode:
                print(" ".join(errors.strip().splitlines()[-1:]), file=sys.stderr, flush=True)
                return None
        measured = [json.loads((Path(name) / f"{i}.json").read_text()) for i in range(workers)]
    return {key: sum(one[key] for one in measured) for key in measured[0]}


def measure(args: argparse.Namespace) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Runs every setting of every question, `repeats` times in turn."""
    runs: dict[str, dict[str, list[dict[str, float]]]] = {}
    for question in args.questions:
        settings = dict(QUESTIONS[question])
        if args.accelerator == "cuda":
            first = next(iter(settings.values()))
            settings |= {str(k): first | {"students": k} for k in LARGER.get(question, ())}
        runs[question] = {name: [] for name in settings}
        for _ in range(args.repeats):
            for name, setting in settings.items():
                measured = apart(args, setting)
                result = "failed" if measured is None else f"{measured['tokens_per_s']:.0f} real tokens/s"
                print(f"{question} {name}: {result}", file=sys.stderr, flush=True)
                runs[question][name] += [measured] if measured else []
    return runs


def table(runs: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """Formats the medians of the repeats in Markdown."""
    rows = []
    for question, answers in runs.items():
        speeds = {name: median(run["tokens_per_s"] for run in some) for name, some in answers.items() if some}
        base = next(iter(speeds.values()), 1.0)
        for name, speed in speeds.items():
            rows.append([question, name, f"{speed:.0f}", f"{speed / base:.2f}"])
    return tabulate(rows, ["question", "", "real tokens/s", "ratio"], tablefmt="pipe", disable_numparse=True)


def main() -> None:
    parser = parser_of(__doc__, steps=10, precision="bf16")
    parser.add_argument("--questions", nargs="+", default=list(QUESTIONS), choices=list(QUESTIONS))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.teacher == SHAPED:
        args.teacher = shaped_teacher(args.work / SHAPED, args.tokenizer)
    if args.one:
        args.out.write_text(json.dumps(run_one(args)))
        return
    runs = measure(args)
    print(table(runs))
    if args.out:
        args.out.write_text(json.dumps({"machine": machine(args.accelerator), "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
