"""A search that is killed again and again, at random moments, ends as one that never was."""

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from forked import Forked
from test_search import TINY

from kdnas.search.journal import JOURNAL, open_storage
from kdnas.search.study import Study

pytestmark = pytest.mark.long

SIZES = ["search.episodes=2", "search.candidates=2", "search.finalists=1", "controller.epsilon_decay=0.5"]
SIZES += ["trainer.max_epochs=8", "search.stages.mini.trainer.max_epochs=8", "search.retries=100"]
SIZES += ["reward=parameters"]  # no two measurements of a latency are alike
KILLS = 8
TOLD, COMPLETE = 6, 1
"""Optuna's numbers for the record that ends a trial, and for a trial that ended well."""


def command(runs, teacher, *overrides):
    words = ["search.py", *TINY, *SIZES, *overrides]
    return [*words, f"teacher.path={teacher}", "++teacher.prepare=null", f"paths.runs={runs}"]


def outcome(folder):
    """Everything that has to be the same: each candidate's figures, and the table."""
    seen = [
        (one.trial, one.architecture, one.origin, one.prediction, one.metrics, one.reward)
        for stage in ("mini", "full")
        for one in Study(open_storage(folder), stage).observations
    ]
    table = pd.read_csv(folder / "report/table.csv")
    differ = ("seconds", "export", "latency", "spread", "speed-up", "busy")
    return seen, table.drop(columns=[name for name in table if any(word in name for word in differ)])


@pytest.fixture(scope="module")
def undisturbed(teacher, tmp_path_factory):
    runs = tmp_path_factory.mktemp("undisturbed")
    began = time.monotonic()
    with (runs / "log").open("w") as log:
        assert Forked(command(runs, teacher), log, log).wait(timeout=900) == 0, (runs / "log").read_text()[-3000:]
    (runs / "seconds").write_text(str(time.monotonic() - began))
    return runs


def trainers(runs):
    """The processes that submitit runs jobs of a search in."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if "submitit.core._submit" in words and any(str(runs) in word for word in words):
            found.append(int(path.parent.name))
    return found


def kill_and_resume(words, runs, kills, victims, longest, rng):
    """Runs a search to its end, killing a victim of its at random moments, which are at most `longest` seconds apart.

    Starts it again when the victim was the search. Returns the number of kills, which are fewer where it ends before.
    """
    done, process = 0, None
    with (runs / "log").open("a") as log:
        while done < kills:
            if process is None:
                process = Forked(words, log, log)
                if rng.random() < 0.8:  # the others are killed while they start
                    wait_for_line("searching", runs / "log", process)
            time.sleep(rng.uniform(0, longest))
            assert process.poll() is None or process.returncode == 0, (runs / "log").read_text()[-3000:]
            if process.poll() == 0:
                break
            victim = rng.choice(victims(process, runs) or [process.pid])
            os.kill(victim, signal.SIGKILL)
            done += 1
            if victim == process.pid:
                process.wait()
                process = None
        process = process or Forked(words, log, log)
        assert process.wait(timeout=900) == 0, (runs / "log").read_text()[-3000:]
    return done


def wait_for_line(word, path, process):
    """Until one more line of a log has a word, or the process has ended."""
    before = path.read_text().count(word)
    while path.read_text().count(word) == before and process.poll() is None:
        time.sleep(0.05)


def check(runs, undisturbed):
    folder = runs / "search/demo"
    seen, table = outcome(folder)
    expected, expected_table = outcome(undisturbed / "search/demo")
    assert seen == expected and len(seen) == 5
    pd.testing.assert_frame_equal(table, expected_table)
    records = [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]
    ends = Counter(r["trial_id"] for r in records if r["op_code"] == TOLD and r.get("state") == COMPLETE)
    assert sorted(ends.values()) == [1] * 5


def test_a_search_that_is_asked_to_end_ends_and_goes_on(undisturbed, teacher, tmp_path):
    with (tmp_path / "log").open("a") as log:
        process = Forked(command(tmp_path, teacher), log, log)
        wait_for_line("searching", tmp_path / "log", process)
        while not list(tmp_path.glob("search/demo/mini/*/last.ckpt")):
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        assert process.wait(timeout=300) != 0
        assert "run the same command again to continue" in (tmp_path / "log").read_text()
        assert Forked(command(tmp_path, teacher), log, log).wait(timeout=900) == 0
    check(tmp_path, undisturbed)


@pytest.mark.parametrize(
    ("launcher", "victims"),
    [
        (["hydra/launcher=basic"], lambda process, runs: [process.pid]),
        (
            ["hydra/launcher=local", "hydra.launcher.n_jobs=2"],
            lambda process, runs: random.choice([[process.pid], trainers(runs)]),
        ),
    ],
    ids=["one process", "the search and its jobs"],
)
def test_killed_at_random_moments(launcher, victims, undisturbed, teacher, tmp_path):
    longest = float((undisturbed / "seconds").read_text()) / 8  # a fast machine has less time to be killed in
    done, rng = 0, random.Random(0)
    while done < KILLS:  # and may end one search before that: then another is begun
        runs = tmp_path / f"after-{done}"
        runs.mkdir()
        done += kill_and_resume(command(runs, teacher, *launcher), runs, KILLS - done, victims, longest, rng)
        check(runs, undisturbed)
