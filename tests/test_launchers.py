"""Launchers whose workers, queue or disks fail them."""

import errno
import os
import signal
import subprocess
import sys

import pytest
import torch
from hydra.core.utils import JobReturn, JobStatus
from lightning.pytorch.utilities.exceptions import SIGTERMException

from kdnas.app.jobs import goes_on
from kdnas.app.launchers import queue
from kdnas.app.launchers.gpus import take_gpu
from kdnas.app.launchers.pool import PoolLauncher
from kdnas.app.launchers.queue import LocalLauncher, Register, SlurmLauncher, Submitted, job_of, same
from kdnas.app.launchers.returns import portable
from kdnas.app.search_folder import set_aside
from kdnas.base.errors import ConfigError
from kdnas.base.locks import take
from kdnas.models.architecture import Architecture
from kdnas.search.job import Job
from kdnas.search.journal import JOURNAL
from kdnas.training.trainer import WholeCheckpoints


class Pool(PoolLauncher):
    """Runs no jobs, but says of each round what became of it."""

    def __init__(self, n_jobs, rounds):
        super().__init__(n_jobs=n_jobs)
        self.rounds, self.asked = rounds, []

    def _together(self, jobs, workers, threads, ended):
        self.asked.append(list(jobs))
        finished, suspects = self.rounds(list(jobs))
        ended |= {number: JobReturn(status=JobStatus.COMPLETED) for number in finished}
        return suspects


def outcomes(returned):
    return [job.status == JobStatus.COMPLETED for job in returned]


def test_a_pool_that_breaks_runs_its_suspects_alone_and_the_rest_together():
    def rounds(jobs):
        if jobs == [2]:
            return [], [2]
        return ([0], [1, 2]) if 2 in jobs else (jobs, [])

    pool = Pool(2, rounds)
    assert outcomes(pool.launch([["a"]] * 5, 0)) == [True, True, False, True, True]
    assert pool.asked == [[0, 1, 2, 3, 4], [1], [2], [3, 4]]


def test_a_pool_whose_workers_never_begin_ends():
    pool = Pool(2, lambda jobs: ([], []))
    assert outcomes(pool.launch([["a"]] * 3, 0)) == [False] * 3


def test_a_pool_of_one_runs_one_job_at_a_time_in_another_process():
    pool = Pool(1, lambda jobs: (jobs, []))
    assert outcomes(pool.launch([["a"]] * 2, 0)) == [True, True]
    assert pool.asked == [[0], [1]]


@pytest.mark.parametrize("n_jobs", [0, -2, 1.5, "many"])
@pytest.mark.parametrize("kind", [PoolLauncher, LocalLauncher])
def test_a_number_of_jobs_that_is_none_is_refused(kind, n_jobs):
    with pytest.raises(ConfigError, match=rf"hydra\.launcher\.n_jobs={n_jobs}: must be a whole number from 1"):
        kind(n_jobs=n_jobs).launch([["job={kind:mini}"]], 0)


def test_processes_share_out_the_gpus(tmp_path):
    code = "import sys, os, pathlib, time; from kdnas.app.launchers.gpus import take_gpu;"
    code += f"take_gpu(pathlib.Path({str(tmp_path)!r}), ['3', '5']);"
    code += "take_gpu(pathlib.Path('/nowhere'), ['9']);"  # it keeps what it has
    code += "print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); sys.stdin.read()"
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    running = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(2)]
    seen = [process.stdout.readline().strip() for process in running]
    assert sorted(seen) == ["3", "5"]
    first = seen.index("3")
    running[first].kill()  # its GPU is free again
    running[first].wait()
    third = subprocess.Popen([sys.executable, "-c", code], **pipes)
    assert third.stdout.readline().strip() == "3"
    for process in (*running, third):
        process.kill()
        process.wait()


def test_without_gpus_nothing_is_hidden(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    take_gpu(tmp_path / "slots", [])
    assert "CUDA_VISIBLE_DEVICES" not in os.environ and not (tmp_path / "slots").exists()


def test_what_comes_back_of_a_job_can_be_read_by_anybody():
    class Unreadable(Exception):
        pass

    assert (
        str(portable(JobReturn(status=JobStatus.FAILED, _return_value=Unreadable("no")))._return_value)
        == "Unreadable: no"
    )
    refused = portable(JobReturn(status=JobStatus.FAILED, _return_value=ConfigError("a=1: must be 2")))
    assert type(refused._return_value) is ConfigError
    assert portable(JobReturn(status=JobStatus.COMPLETED, _return_value={"loss": 1}))._return_value is None


def test_a_job_of_an_earlier_run_is_known_again_by_its_search_and_name():
    one, other = (
        Job("mini", (1,), (Architecture(1, 1, 8, 8, "gelu"),), search).to_override() for search in ("abc", "other")
    )
    assert same(["search.episodes=2", one], ["search.episodes=5", one])
    assert not same(["search.episodes=2", one], ["search.episodes=2", other])
    preparing = Job("prepare").to_override()
    assert same([preparing], [preparing])
    assert not same(["data.rows=1", preparing], ["data.rows=2", preparing])
    assert job_of(["seed=0", one]) == "mini/0001" and job_of(["seed=0"]) != job_of(["seed=1"])


def test_the_register_keeps_what_earlier_runs_submitted(tmp_path):
    path = tmp_path / "jobs.json"
    Register(path).add({"mini/0000": Submitted("7_0", "there/%j", ["job={kind:mini}"])})
    Register(path).add({"mini/0001": Submitted("8", "here/%j", ["job={kind:mini}"])})
    assert {name: job.id for name, job in Register(path).jobs.items()} == {"mini/0000": "7_0", "mini/0001": "8"}


SQUEUE = """#!/bin/sh
[ -e {folder}/down ] && { echo "slurm_load_jobs error: Unable to contact" >&2; exit 1; }
echo "12_0|RUNNING|None"
echo "12_1|PENDING|launch failed requeued held"
"""


def test_a_queue_that_does_not_answer_has_lost_no_job(tmp_path, monkeypatch, caplog):
    (tmp_path / "squeue").write_text(SQUEUE.replace("{folder}", str(tmp_path)))
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    launcher = SlurmLauncher()
    with caplog.at_level("INFO", logger="kdnas"):
        assert launcher.alive({"12_0", "12_1", "12_2"}) == {"12_0", "12_1"}
    assert "SLURM keeps jobs waiting: launch failed requeued held" in caplog.text
    (tmp_path / "down").touch()
    assert launcher.alive({"12_0", "12_2"}) == {"12_0", "12_2"}
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert launcher.alive({"12_0"}) == {"12_0"}
    assert launcher.fate("12_0") == "SLURM job 12_0 ended without a result"


def test_a_submission_is_tried_again(monkeypatch):
    class Busy(SlurmLauncher):
        tries = 0

        def _submit(self, jobs, folder):
            self.tries += 1
            if self.tries < 3:
                raise RuntimeError("sbatch: error: Socket timed out")
            return {"mini/0000": "job"}

    monkeypatch.setattr(queue, "PAUSES", (0, 0))
    busy = Busy()
    assert busy._submit_again({"mini/0000": []}, None) == {"mini/0000": "job"}
    busy.tries = -5
    with pytest.raises(RuntimeError, match="Socket timed out"):
        busy._submit_again({"mini/0000": []}, None)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (SIGTERMException(), True),
        (ValueError("a student that cannot be"), False),
        (SystemExit(3), False),
        (MemoryError(), False),
    ],
)
def test_whose_fault_an_error_is(error, expected):
    try:
        raise error
    except BaseException as raised:
        assert goes_on(raised) is expected


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path):
    files = WholeCheckpoints()
    files.save_checkpoint({"step": 1}, tmp_path / "last.ckpt")

    class Fails:
        def __reduce__(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError):
        files.save_checkpoint({"step": torch.ones(1000), "more": Fails()}, tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_search_is_not_set_aside_under_a_job_that_runs(tmp_path):
    job = tmp_path / "search/mini/0000"
    job.mkdir(parents=True)
    (tmp_path / "search" / JOURNAL).touch()
    with (job / ".lock").open("a") as lock:
        code = f"import fcntl, time; file = open({str(job / '.lock')!r}); fcntl.flock(file, fcntl.LOCK_EX);"
        words = [sys.executable, "-c", code + "print('held', flush=True); time.sleep(99)"]
        holder = subprocess.Popen(words, stdout=subprocess.PIPE)
        holder.stdout.readline()
        with pytest.raises(ConfigError, match=r"search\.fresh=true: a job of the earlier search runs in .*mini/0000"):
            set_aside(tmp_path / "search")
        assert (tmp_path / "search" / JOURNAL).exists()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        take(lock, 2)  # the kernel has freed it
    set_aside(tmp_path / "search")
    assert (tmp_path / "search.old-1" / JOURNAL).exists() and not list((tmp_path / "search").iterdir())
