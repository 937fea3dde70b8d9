"""A search on a real SLURM, whose jobs and whose own process are cancelled, killed and requeued: `make test-slurm`."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from failing import SLEEPER
from forked import Forked, run
from optuna.trial import TrialState
from test_failures import DONE, LOST, RAISED, check_fates, command, of_fates
from test_kills import COMPLETE, TOLD
from test_search import TINY

from kdnas.search.journal import JOURNAL, open_storage
from kdnas.search.study import Study

pytestmark = pytest.mark.slurm

SLURM = ["hydra/launcher=slurm", "hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1"]
SLURM += ["hydra.launcher.mem_gb=2", "hydra.launcher.array_parallelism=3"]
OVERTIME = {32: DONE, SLEEPER: "timed-out too many times. (tried 1 times)"}


@pytest.fixture(scope="module", autouse=True)
def slurm():
    if shutil.which("sbatch") is None or subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("no SLURM answers here; `make test-slurm` starts one")


@pytest.fixture(scope="module", autouse=True)
def overtime(slurm, teacher, tmp_path_factory):
    """A search with a job that sleeps through its time limit: two minutes, in which the other tests run.

    SLURM looks at its limits twice a minute and signals up to a look early: of one minute, half might be left.
    """
    folder = tmp_path_factory.mktemp("overtime")
    limit = ["hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=5"]
    limit += ["trainer.max_time=null", "search.retries=0"]
    with (folder / "log").open("w") as log:
        yield Forked(command(folder, folder, teacher, *of_fates(OVERTIME), *SLURM, *limit), log, log), folder


def running(name):
    """The running tasks of arrays of a name."""
    squeue = ["squeue", "--noheader", "--array", "--states=RUNNING", "--format=%i", f"--name={name}"]
    listed = subprocess.run(squeue, capture_output=True, text=True, check=True)
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
    words = ["search.py", *TINY, *SLURM, f"paths.runs={tmp_path}", f"teacher.path={teacher}"]
    words += ["++teacher.prepare=null", "search.episodes=2", "search.candidates=4", "search.finalists=1"]
    words += ["search.stages.mini.trainer.max_epochs=30", "hydra.launcher.name=outlives"]
    folder = tmp_path / "search/demo"
    with (tmp_path / "log").open("w") as log:
        process = Forked(words, log, log)
        one, other, third = wait_for(
            lambda: len(jobs := running("outlives")) == 3 and all(map(training, jobs)) and jobs
        )
        wait_for(lambda: len(list(folder.glob("mini/*/last.ckpt"))) == 3)
        subprocess.run(["scancel", one], check=True)
        os.kill(training(other), signal.SIGKILL)
        subprocess.run(["scontrol", "requeue", third], check=True)
        process.kill()
        process.wait()
        time.sleep(1)
        process = Forked(words, log, log)
        assert process.wait(timeout=900) == 0, (tmp_path / "log").read_text()[-3000:]
    told = (tmp_path / "log").read_text()
    assert "is still there from an earlier run of this search" in told
    for stage, count in (("mini", 8), ("full", 1)):
        assert [t.state for t in Study(open_storage(folder), stage).trials()] == [TrialState.COMPLETE] * count
    records = [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]
    ends = Counter(r["trial_id"] for r in records if r["op_code"] == TOLD and r.get("state") == COMPLETE)
    assert sorted(ends.values()) == [1] * 9
    assert (folder / "report/table.csv").is_file()


def test_every_failure_is_recorded_and_costs_nobody_else(teacher, tmp_path):
    expected = RAISED | LOST
    done = run(command(tmp_path, tmp_path, teacher, *of_fates(expected), *SLURM))
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    check_fates(Study(open_storage(tmp_path / "search/demo")), expected)


def test_a_job_that_runs_out_of_slurms_time_has_died(overtime):
    """That jobs which died are run again is tested above: here it would only take its time twice."""
    process, folder = overtime
    assert process.wait(600) == 0, (folder / "log").read_text()[-3000:]
    check_fates(Study(open_storage(folder / "search/demo")), OVERTIME)
