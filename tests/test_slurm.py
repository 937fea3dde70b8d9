"""A search on a real SLURM, whose jobs and whose own process are cancelled, killed and requeued: `make test-slurm`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from optuna.trial import TrialState
from test_failures import DONE, KILLED, RAISED, check_fates, of_fates, search
from test_kills import COMPLETE, TOLD, start
from test_search import TINY

from kdnas.search.journal import JOURNAL, open_storage
from kdnas.search.study import Study

pytestmark = pytest.mark.slurm

SLURM = ["hydra/launcher=slurm", "hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1"]
SLURM += ["hydra.launcher.mem_gb=2", "hydra.launcher.array_parallelism=3"]


@pytest.fixture(autouse=True)
def slurm():
    if shutil.which("sbatch") is None or subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("no SLURM answers here; `make test-slurm` starts one")


def running():
    """The running tasks of arrays: the search's candidates."""
    listed = subprocess.run(
        ["squeue", "--noheader", "--array", "--states=RUNNING", "--format=%i"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [job for job in listed.stdout.split() if "_" in job]


def training(job):
    """The process in which a job trains."""
    array, task = job.split("_")
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            variables = dict(part.partition(b"=")[::2] for part in (path / "environ").read_bytes().split(b"\0"))
        except OSError:
            continue
        here = variables.get(b"SLURM_ARRAY_JOB_ID"), variables.get(b"SLURM_ARRAY_TASK_ID")
        if b"submitit.core._submit" in words and b"python" in words[0] and here == (array.encode(), task.encode()):
            return int(path.name)
    return None


def wait_for(what, seconds=300):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    return found


def test_a_search_outlives_its_jobs_and_its_jobs_the_search(teacher, tmp_path):
    words = [sys.executable, "search.py", *TINY, *SLURM, f"paths.runs={tmp_path}", f"teacher.path={teacher}"]
    words += ["++teacher.prepare=null", "search.episodes=2", "search.candidates=6", "search.finalists=1"]
    words += ["search.stages.mini.trainer.max_epochs=30"]
    folder = tmp_path / "search/demo"
    with (tmp_path / "log").open("w") as log:
        process = start(words, log)
        one, other, third = wait_for(lambda: len(jobs := running()) == 3 and all(map(training, jobs)) and jobs)
        wait_for(lambda: len(list(folder.glob("mini/*/last.ckpt"))) == 3)
        subprocess.run(["scancel", one], check=True)
        os.kill(training(other), signal.SIGKILL)
        subprocess.run(["scontrol", "requeue", third], check=True)
        process.kill()
        process.wait()
        time.sleep(1)
        process = start(words, log)
        assert process.wait(timeout=900) == 0, (tmp_path / "log").read_text()[-3000:]
    told = (tmp_path / "log").read_text()
    assert "is still there from an earlier run of this search" in told
    for stage, count in (("mini", 12), ("full", 1)):
        assert [t.state for t in Study(open_storage(folder), stage).trials()] == [TrialState.COMPLETE] * count
    records = [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]
    ends = Counter(r["trial_id"] for r in records if r["op_code"] == TOLD and r.get("state") == COMPLETE)
    assert sorted(ends.values()) == [1] * 13
    assert (folder / "report/table.csv").is_file()


def test_every_failure_is_recorded_and_costs_nobody_else(teacher, tmp_path):
    expected = RAISED | KILLED
    done = search(tmp_path, tmp_path, teacher, *of_fates(expected), *SLURM)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    check_fates(Study(open_storage(tmp_path / "search/demo")), expected)


def test_a_job_that_runs_out_of_slurms_time_has_died(teacher, tmp_path):
    """That jobs which died are run again is tested above: here it would only take its time twice."""
    expected = {32: DONE, 50: "timed-out too many times. (tried 1 times)"}
    # One at a time: the one that sleeps does so in a step, so that the other's latency could not be measured. And SLURM
    # looks at its limits twice a minute and signals up to a look early: of one minute, half might be left.
    limit = [
        "hydra.launcher.array_parallelism=1",
        "hydra.launcher.timeout_min=2",
        "hydra.launcher.signal_delay_s=5",
        "trainer.max_time=null",
        "search.retries=0",
    ]
    done = search(tmp_path, tmp_path, teacher, *of_fates(expected), *SLURM, *limit)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    check_fates(Study(open_storage(tmp_path / "search/demo")), expected)
