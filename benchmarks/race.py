"""Races kdnas against the plain loops that it replaces: real tokens a second, candidates an hour, peak memory.

    python -m benchmarks.race --teacher <folder or hub id> --data <folder or hub id> --out race.json
    python -m benchmarks.race --teacher bert-base-shaped --tokenizer <folder or hub id> --contenders a c d e-disk

    a   the plain loop of the public re-implementation: teacher online, padded to 128 tokens, one projection
    b   the same, padded to the longest row of the batch
    c   TextBrewer's GeneralDistiller (pip install '.[benchmarks]'), padded to the longest row of the batch
    d   kdnas, teacher online
    e   kdnas, the teacher's outputs kept: e-memory, e-disk
    f   kdnas, k students at once: f-online-2, f-memory-8, ...

a, b and c run in fp32; the others in --precision, or in the one that the name ends with (d-bf16). Every contender has a
process of its own for each repeat, in turn (a, b, ..., a, b, ...), and is timed in its last epoch, when all is warm.
Run it while the host does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tabulate import tabulate
from transformers import BertConfig, BertModel

from benchmarks.ceiling import product_rate, training_flops
from benchmarks.contenders import BATCH, PRECISIONS, STUDENT, Clock, Contender, Course, held_out_loss
from kdnas.models.loading import load_config, load_tokenizer
from kdnas.models.resizing import student_config

GANGS = [f"f-{outputs}-{students}" for outputs in ("online", "memory") for students in (2, 4, 8)]
DEFAULT = ["a", "b", "c", "d", "e-memory", "e-disk", *GANGS]
AGAINST = ("a", "b", "c")
"""The contenders that the others are compared with."""
SHAPED = "bert-base-shaped"
"""The teacher of BERT-base's shape with random weights: for speed alone."""
CEILING = "ceiling"
"""Runs with the contenders, and measures the machine."""
DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}
GIB = 2**30


# -- one process


def run_one(args: argparse.Namespace) -> dict[str, Any]:
    """Runs one contender, or measures the machine, in this process; returns what was measured."""
    course = Course(
        args.teacher, args.data, args.steps, args.epochs, args.held_out, torch.device(args.accelerator), args.work
    )
    if args.one == CEILING:
        return measure_ceiling(course)
    contender, clock = Contender.of(args.one, args.precision), Clock(course.device)
    students = contender.run(course, clock)
    measured: dict[str, Any] = clock.measured()
    measured["tokens_per_s"] = contender.students * measured["tokens"] / measured["seconds"]
    measured["memory"] = peak_memory(course.device)
    measured["host_memory"] = peak_memory(torch.device("cpu"))
    return measured | {"losses": held_out_loss(course, students)}


def peak_memory(device: torch.device) -> int:
    """Returns the most bytes that this process has had in use."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure_ceiling(course: Course) -> dict[str, Any]:
    """Returns the FLOPs that training on a real token takes, and the rates of matrix products in FLOP/s."""
    teacher = load_config(course.teacher)
    student, width = student_config(teacher, STUDENT), teacher.hidden_size
    lengths = [len(tokens) for tokens in course.training_rows()["input_ids"]]
    pairs = len(course.pairs(teacher.num_hidden_layers))
    return {
        "tokens_per_row": sum(lengths) / len(lengths),
        "longest_row": max(lengths),
        "flops_per_token": training_flops(student, width, pairs, lengths),
        "rates": {name: product_rate(student, width, course.device, dtype) for name, dtype in DTYPES.items()},
    }


# -- all of them


def race(args: argparse.Namespace) -> dict[str, Any]:
    """Runs every contender `repeats` times, in turn, each in a process of its own."""
    contenders = [Contender.of(name, args.precision) for name in args.contenders]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in (CEILING, *args.contenders)}
    for repeat in range(args.repeats):
        for name, results in runs.items():
            results.append(apart(args, name))
            outcome = results[-1].get("error") or f"{results[-1].get('tokens_per_s', 0):.0f} real tokens/s"
            if name != CEILING:
                print(f"{name}, {repeat + 1} of {args.repeats}: {outcome}", file=sys.stderr, flush=True)
    for entry in runs[CEILING]:
        if "error" in entry:
            raise SystemExit(f"error: {entry['error']}")
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    ceiling = runs.pop(CEILING)
    return {
        "machine": machine(args.accelerator),
        "settings": settings,
        "student": STUDENT.to_dict(),
        "contenders": {contender.name: asdict(contender) for contender in contenders},
        "ceiling": ceiling,
        "runs": runs,
        "summary": summary(args, contenders, runs, ceiling),
    }


def apart(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Runs one contender once in a fresh process; returns its measurements, or the error that it died of."""
    load = os.getloadavg()[0]
    with TemporaryDirectory(dir=args.work) as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, "-m", "benchmarks.race", "--one", name, "--out", str(out), "--work", folder]
        for key in ("teacher", "data", "steps", "epochs", "held_out", "accelerator", "precision"):
            command += [f"--{key.replace('_', '-')}", str(getattr(args, key))]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode or not out.is_file():
            lines = done.stderr.strip().splitlines()
            return {"error": " ".join(lines[-2:]) or f"status {done.returncode}", "load": load}
        return json.loads(out.read_text()) | {"load": load}


def summary(
    args: argparse.Namespace,
    contenders: list[Contender],
    runs: dict[str, list[dict[str, Any]]],
    ceiling: list[dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Returns the medians over the repeats for each contender, and what is computed from them."""
    middle = {
        name: {key: median(run[key] for run in done) for key in ("tokens_per_s", "memory", "ready")}
        for name, results in runs.items()
        if (done := [run for run in results if "error" not in run])
    }
    best = {precision: max(entry["rates"][precision] for entry in ceiling) for precision in DTYPES}
    tokens = args.mini_epochs * args.mini_rows * ceiling[0]["tokens_per_row"]
    measured: dict[str, dict[str, Any]] = {}
    for contender in contenders:
        name = contender.name
        if name not in middle:
            measured[name] = {"error": next(run["error"] for run in runs[name] if "error" in run)}
            continue
        speed = middle[name]["tokens_per_s"]
        done = [run for run in runs[name] if "error" not in run]
        fill = cache_seconds(contender, middle, args.mini_rows / (args.steps * BATCH))
        seconds = contender.students * tokens / speed
        measured[name] = {
            "tokens_per_s": speed,
            "tokens_per_s_range": [extreme(run["tokens_per_s"] for run in done) for extreme in (min, max)],
            "times": {other: speed / middle[other]["tokens_per_s"] for other in AGAINST if other in middle},
            "candidates_per_hour": 3600 * contender.students / seconds,
            "first_candidates_per_hour": 3600 * contender.students / (seconds + fill),
            "cache_seconds": fill,
            "memory": middle[name]["memory"],
            "loss": median(sum(run["losses"]) / len(run["losses"]) for run in done),
            "share_of_ceiling": speed * ceiling[0]["flops_per_token"] / best[contender.precision],
        }
    return measured


def cache_seconds(contender: Contender, middle: dict[str, dict[str, float]], scale: float) -> float:
    """Returns the seconds that filling the cache takes, once for all candidates, scaled to the rows of a mini-KD.

    Measured as the delay, compared to a contender without a cache, until the last epoch's speed is reached.
    """
    if contender.outputs == "online":
        return 0.0
    online = next((middle[name]["ready"] for name in ("d", "b", "c") if name in middle), 0.0)
    return scale * max(0.0, middle[contender.name]["ready"] - online)


def table(result: dict[str, Any]) -> str:
    """Formats the summary in Markdown."""
    names = {"32-true": "fp32", "bf16-mixed": "bf16"}
    rows = []
    for name, measured in result["summary"].items():
        if "error" in measured:
            rows.append([name, names[result["contenders"][name]["precision"]], "failed"])  # the reason is on stderr
            continue
        low, high = measured["tokens_per_s_range"]
        times = [f"{measured['times'][other]:.2f}" if other in measured["times"] else "" for other in AGAINST]
        rows.append(
            [
                name,
                names[result["contenders"][name]["precision"]],
                f"{measured['tokens_per_s']:.0f} ({low:.0f} to {high:.0f})",
                *times,
                f"{measured['candidates_per_hour']:.1f}",
                f"{measured['first_candidates_per_hour']:.1f}",
                f"{measured['memory'] / GIB:.2f}",
                f"{measured['loss']:.4f}",
                f"{measured['share_of_ceiling']:.1%}",
            ]
        )
    against = [f"/ {other}" for other in AGAINST]
    headers = [
        "",
        "dtype",
        "real tokens/s",
        *against,
        "candidates/h",
        "the first",
        "peak GiB",
        "loss",
        "of the ceiling",
    ]
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)


def notes(result: dict[str, Any]) -> str:
    """Returns the notes that explain the table."""
    settings, machine, ceiling = result["settings"], result["machine"], result["ceiling"][0]
    rates = {name: max(entry["rates"][name] for entry in result["ceiling"]) / 1e9 for name in DTYPES}
    return "\n".join(
        [
            f"{machine['accelerator']}, {machine['threads']} threads, torch {machine['packages']['torch']}; "
            f"teacher {Path(settings['teacher_name']).name}, student {'-'.join(map(str, result['student'].values()))}.",
            f"Medians of {settings['repeats']} runs of {settings['epochs']} x {settings['steps']} batches, of which "
            "the last epoch is timed; tokens of all students count.",
            f"A candidate is {settings['mini_epochs']} epochs of {settings['mini_rows']} rows of "
            f"{ceiling['tokens_per_row']:.1f} tokens; the first (or first gang) also pays for filling the cache.",
            f"The ceiling: {ceiling['flops_per_token'] / 1e6:.1f} MFLOP a real token (student and projections, no "
            f"teacher), at {rates['32-true']:.0f} (fp32) and {rates['bf16-mixed']:.0f} (bf16) GFLOP/s of products.",
            f"The loss: on {settings['held_out']} held-out rows, mean over the pairs; after the last step, with kdnas "
            "after its best epoch.",
        ]
    )


def machine(accelerator: str) -> dict[str, Any]:
    """Describes the machine, without its name."""
    packages: dict[str, str | None] = {}
    for name in ("torch", "transformers", "lightning", "textbrewer"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "accelerator": torch.cuda.get_device_name() if accelerator == "cuda" else processor(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": packages,
    }


def processor() -> str:
    """Returns the name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def shaped_teacher(folder: Path, tokenizer: str) -> str:
    """Makes an encoder of BERT-base's shape with random weights, unless the folder has one; returns the folder."""
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        BertModel(BertConfig()).save_pretrained(folder)
        load_tokenizer(tokenizer, "--tokenizer").save_pretrained(folder)
    return str(folder)


def parser_of(text: str | None, steps: int, precision: str) -> argparse.ArgumentParser:
    """Makes a parser with the arguments that every benchmark of throughput has."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default=SHAPED, help="folder or hub id of a BERT-like encoder; %(default)s")
    parser.add_argument("--tokenizer", default="google-bert/bert-base-uncased", help=f"of {SHAPED}; %(default)s")
    parser.add_argument("--data", default="nyu-mll/glue", help="GLUE, for its mnli; %(default)s")
    parser.add_argument("--steps", type=int, default=steps, help="batches of 32 rows, an epoch; %(default)s")
    parser.add_argument("--epochs", type=int, default=2, help="of which the last is timed; %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="%(default)s")
    parser.add_argument(
        "--accelerator", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--precision", choices=list(PRECISIONS), default=precision, help="kdnas's; %(default)s")
    parser.add_argument("--work", type=Path, default=Path("runs/race"), help="for what is made on the way; %(default)s")
    parser.add_argument("--out", type=Path, help="a JSON file for every run's measurements")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # this process is one run's
    return parser


def parse() -> argparse.Namespace:
    parser = parser_of(__doc__, steps=30, precision="fp32")
    parser.add_argument("--contenders", nargs="+", default=DEFAULT, metavar="NAME", help=" ".join(DEFAULT))
    parser.add_argument("--held-out", type=int, default=500, help="rows of the final loss; %(default)s")
    parser.add_argument("--mini-rows", type=int, default=4000, help="of a candidate; %(default)s")
    parser.add_argument("--mini-epochs", type=int, default=2, help="of a candidate; %(default)s")
    parser.add_argument("--quick", action="store_true", help="once over very few rows, to see that it runs")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.repeats, args.held_out = 3, 1, 32
    if args.epochs < 2 or args.steps < 2:
        parser.error("--epochs and --steps: must be at least 2; the first is to warm up")
    try:
        for name in args.contenders:
            Contender.of(name, args.precision)
    except ValueError as error:
        parser.error(f"--contenders: {error}")
    return args


def main() -> None:
    args = parse()
    args.work.mkdir(parents=True, exist_ok=True)
    args.teacher_name = args.teacher
    if args.teacher == SHAPED:
        args.teacher = shaped_teacher(args.work / SHAPED, args.tokenizer)
    if args.one:
        args.out.write_text(json.dumps(run_one(args)))
        return
    result = race(args)
    print(table(result), "", notes(result), sep="\n")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
