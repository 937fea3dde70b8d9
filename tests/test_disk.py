"""Disks that cannot be written to. A limit on the size of files stands for a full one: the kernel's errors are real."""

import json
import logging
import resource
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf
from optuna.trial import TrialState
from transformers import AutoModel, AutoTokenizer

from kdnas.app.dispatch import Dispatcher
from kdnas.app.jobs import reporting
from kdnas.app.launchers.returns import DiedError, failed, from_json, portable, to_json
from kdnas.base.disk import DiskError, disk_error, writing
from kdnas.base.errors import ConfigError
from kdnas.base.files import reading
from kdnas.models.architecture import Architecture
from kdnas.models.exports import export
from kdnas.search.job import Job
from kdnas.search.journal import open_storage
from kdnas.search.study import Study
from kdnas.training.trainer import WholeCheckpoints

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def full(size=4096):
    """No file can be larger, as if the disk were full then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # Python would leave modules cut short
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def raised(what):
    with pytest.raises(Exception) as caught:
        what()
    return caught.value


def test_a_checkpoint_that_does_not_fit_is_the_disks_fault_and_leaves_the_one_before(tmp_path):
    path, files = tmp_path / "last.ckpt", WholeCheckpoints()
    files.save_checkpoint({"step": 1}, path)
    with full(), pytest.raises(DiskError, match=r"last\.ckpt.*: File too large \(.* GB free\)|: File too large \("):
        files.save_checkpoint({"weights": torch.ones(100_000)}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [one.name for one in tmp_path.iterdir()] == ["last.ckpt"]


def test_an_export_that_does_not_fit_is_the_disks_fault_and_leaves_nothing(teacher, tmp_path):
    model, tokenizer = AutoModel.from_pretrained(teacher), AutoTokenizer.from_pretrained(teacher)
    with full(), pytest.raises(DiskError, match=rf"^{tmp_path}.*: File too large \(.*free"):
        export(model, tokenizer, tmp_path / "export")
    assert not list(tmp_path.iterdir())


def test_what_a_full_device_says_is_found_behind_other_errors():
    def write():
        with open("/dev/full", "w") as file:
            file.write("x" * 100_000)

    def wrapped(error):
        try:
            try:
                write()
            except OSError as full:
                raise error from full
        except Exception as outer:
            return outer

    met = disk_error(wrapped(RuntimeError("unexpected pos 64 vs 0")))
    assert "No space left on device" in str(met)
    with pytest.raises(DiskError, match="No space left on device"), reading("data.path", "there"):
        raise wrapped(ValueError("a cache that cannot be written"))
    with pytest.raises(ConfigError), reading("data.path", "there"):
        raise ValueError("a damaged file")


def test_other_errors_are_not_the_disks(tmp_path):
    for error in (ValueError("a student that cannot be"), FileNotFoundError(2, "no such file"), MemoryError()):
        assert disk_error(error, tmp_path) is None
        with pytest.raises(type(error)), writing(tmp_path / "file"):
            raise error


def test_a_folder_that_is_gone_is_named(tmp_path):
    met = disk_error(RuntimeError("cannot open file"), tmp_path / "gone")
    assert str(met).startswith(f"{tmp_path / 'gone'}: No such file or directory (")


def test_errors_of_known_kinds_reach_the_search_as_such():
    for error, kind in (
        (DiskError("/here: full"), DiskError),
        (ConfigError("a=1: must be 2"), ConfigError),
        (DiedError("killed"), DiedError),
    ):
        back = from_json(json.loads(json.dumps(to_json(portable(failed(error))))))
        assert back.status == JobStatus.FAILED
        assert type(back._return_value) is kind and str(back._return_value) == str(error)
    assert from_json(to_json(JobReturn(status=JobStatus.COMPLETED))).status == JobStatus.COMPLETED


@pytest.fixture
def candidate(tmp_path):
    """A config, a job with one trial, and its study."""
    study = Study(open_storage(tmp_path))
    study.optuna.set_user_attr("search", "search-1")
    study.add(Architecture(1, 2, 16, 32, "gelu"), {"episode": 0, "origin": "random"})
    paths, search = {"output": str(tmp_path / "mini/0000")}, {"dir": str(tmp_path)}
    controller = {"_target_": "optuna.samplers.RandomSampler", "_partial_": True}
    cfg = OmegaConf.create({"paths": paths, "search": search, "controller": controller, "seed": 0})
    return (cfg, Job("mini", trials=(0,), search="search-1")), study


def test_a_candidate_is_not_to_blame_for_what_happens_while_its_disk_is_full(candidate, tmp_path):
    job, study = candidate
    with pytest.raises(DiskError, match=r"mini/0000: File too large"), ExitStack() as after, reporting(*job):
        after.enter_context(full())
        raise RuntimeError("unexpected pos 64 vs 0")  # which does not say where it came from
    assert [trial.state for trial in study.trials()] == [TrialState.RUNNING]
    with pytest.raises(RuntimeError, match="ValueError: cannot be"), reporting(*job):
        raise ValueError("cannot be")
    assert [trial.state for trial in study.trials()] == [TrialState.FAIL]


def test_the_traceback_goes_to_the_log_file_and_not_to_the_terminal(candidate, tmp_path, capsys):
    job, _ = candidate
    file, terminal = logging.FileHandler(tmp_path / "job.log"), logging.StreamHandler(sys.stderr)
    root = logging.getLogger()
    root.addHandler(file)
    root.addHandler(terminal)
    try:
        with pytest.raises(RuntimeError), reporting(*job):
            raise ValueError("cannot be")
    finally:
        root.removeHandler(file)
        root.removeHandler(terminal)
        file.close()
    assert "Traceback" in (tmp_path / "job.log").read_text()
    assert "Traceback" not in capsys.readouterr().err


class Launcher:
    """Gives back what it is told to, one list a launch."""

    def __init__(self, *rounds):
        self.rounds, self.asked = list(rounds), []

    def launch(self, jobs, initial_job_idx):
        self.asked.append([Job.in_overrides(job).kind for job in jobs])
        ends = self.rounds.pop(0)
        if isinstance(ends, Exception):
            raise ends
        return [failed(end) if isinstance(end, Exception) else JobReturn(status=JobStatus.COMPLETED) for end in ends]


def sweeper(folder, *rounds, retries=1):
    return Dispatcher(Launcher(*rounds), [], folder, retries)


FULL = DiskError("/here: No space left on device (nothing free)")


def test_jobs_that_met_a_full_disk_are_run_again(tmp_path):
    one = sweeper(tmp_path, [None, FULL, ValueError("its own")], [None])
    returned = one.launch([Job("a"), Job("b"), Job("c")])
    assert one.launcher.asked == [["a", "b", "c"], ["b"]]
    assert [job.status == JobStatus.COMPLETED for job in returned] == [True, True, False]


def test_a_disk_that_stays_full_ends_the_search(tmp_path):
    one = sweeper(tmp_path, [None, FULL], [FULL], [FULL], retries=2)
    with pytest.raises(DiskError, match="^/here: No space left on device"):
        one.launch([Job("a"), Job("b")])
    assert one.launcher.asked == [["a", "b"], ["b"], ["b"]]


def test_hydra_that_cannot_write_its_notes_has_met_the_disk_too(tmp_path):
    one = sweeper(tmp_path, OSError(28, "No space left on device", "config.yaml"), [None])
    assert one.launch([Job("a")])[0].status == JobStatus.COMPLETED


def test_a_job_that_died_without_a_word_has_met_the_disk_if_it_is_full(tmp_path):
    died = DiedError("process 12 ended without a result")
    one = sweeper(tmp_path, [died])
    assert one.launch([Job("a")])[0]._return_value.args == died.args  # run again by who counts its tries
    one = sweeper(tmp_path / "gone", [died], [died])
    with pytest.raises(DiskError, match="gone: No such file or directory"):
        one.launch([Job("a")])


def test_a_training_on_a_full_disk_ends_in_one_line(teacher, text_dataset, tmp_path):
    words = [sys.executable, "train.py", f"teacher.path={teacher}", f"data.path={text_dataset}", "data.name=null"]
    words += ["data.columns=[premise]", "data.sentences=false", "data.max_length=16", "data.batch_size=8"]
    words += ["trainer.max_epochs=1", "trainer.precision=32-true", f"paths.runs={tmp_path}", "~latency"]
    words += ["architecture.num_hidden_layers=1", "architecture.num_attention_heads=2", "architecture.hidden_size=16"]
    words += ["architecture.intermediate_size=32", f"outputs.folder={tmp_path}/outputs"]
    shell = f"ulimit -f 40; exec {' '.join(repr(word) for word in words)}"
    environment = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path)}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # or it would leave modules cut short
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "Traceback" not in done.stdout + done.stderr
    last = done.stderr.splitlines()[-1]
    assert (
        last.startswith("error: ")
        and "File too large (" in last
        and last.endswith("run the same command again to continue")
    )
