"""Waiting for other processes, which hold real locks."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kdnas.app.search_folder import searching_in
from kdnas.base import locks
from kdnas.base.errors import ConfigError
from kdnas.base.locks import alone, free, holders, take

ROOT = Path(__file__).resolve().parent.parent
SIGNED = (
    "import fcntl, sys; from kdnas.base.locks import take; file = open(sys.argv[1], 'a'); take(file, fcntl.LOCK_EX);"
)
BARE = "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.flock(file, fcntl.LOCK_{});"


@pytest.fixture
def hold():
    """Starts a process that holds the lock on a file."""
    started = []

    def start(path, code=SIGNED):
        words = [sys.executable, "-c", f"{code} print('held', flush=True); sys.stdin.read()", str(path)]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.01)
    monkeypatch.setattr(locks, "REPEAT", 0.05)


def wait_until(what):
    while not what():
        time.sleep(0.01)


def test_who_waits_says_for_whom_and_how_long_already_again_and_again(tmp_path, hold, hasty, caplog):
    path = tmp_path / "some.lock"
    holder = hold(path)
    taken = threading.Event()

    def wait():
        with alone(path, "the teacher"):
            taken.set()

    with caplog.at_level("INFO", logger="kdnas"):
        thread = threading.Thread(target=wait)
        thread.start()
        wait_until(lambda: len(caplog.messages) > 2)
        assert not taken.is_set()
        holder.kill()
        thread.join(timeout=60)
    assert taken.is_set()
    first, second, *_ = caplog.messages
    who = f"process {holder.pid} ({sys.executable} -c"
    assert first.startswith(f"the teacher: waiting for {who}") and f"which holds {path}" in first
    assert ", since " in first and who in second and ", still, " in second


@pytest.mark.parametrize("mode", ["EX", "SH"])
def test_a_holder_that_leaves_no_note_is_known_to_the_kernel_and_a_dead_ones_note_is_not_believed(mode, tmp_path, hold):
    path = tmp_path / "some.lock"
    dead = hold(path)
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    assert json.loads(path.read_text())["pid"] == dead.pid
    holder = hold(path, BARE.format(mode))
    with path.open("a") as file:
        assert holders(file).startswith(f"process {holder.pid} (")
        assert str(dead.pid) not in holders(file).split("(")[0]


def test_without_a_kernel_that_tells_a_dead_ones_note_is_not_believed_either(tmp_path, hold, monkeypatch):
    path = tmp_path / "some.lock"
    holder = hold(path)
    monkeypatch.setattr(locks, "_local_holders", lambda file: [])
    with path.open("a") as file:
        assert holders(file).startswith(f"process {holder.pid} (")
        holder.kill()
        holder.wait()
        assert holders(file) == "a process that cannot be seen"


def test_a_holder_on_another_host_is_named_by_its_note(tmp_path):
    path = tmp_path / "some.lock"
    note = {"pid": 4711, "host": "node7", "command": "python search.py", "since": time.time() - 600}
    path.write_text(json.dumps(note))
    with path.open("a") as file:
        assert holders(file).startswith("process 4711 on node7 (python search.py), since ")
        assert holders(file).endswith("(10 min)")


@pytest.mark.parametrize("note", ["", "[]", "{}", "no JSON", '{"pid": 1}'])
def test_any_other_content_is_no_note(note, tmp_path):
    (tmp_path / "some.lock").write_text(note)
    with (tmp_path / "some.lock").open("a") as file:
        assert holders(file) == "a process that cannot be seen"


def test_a_lock_whose_file_is_removed_meanwhile_is_taken_anew(tmp_path, hold):
    path = tmp_path / "folder/some.lock"
    path.parent.mkdir()
    holder = hold(path)
    taken = threading.Event()

    def wait():
        with alone(path, "the folder"), path.open("a") as other:
            assert not free(other)
            taken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: os.stat(path).st_nlink and holder.poll() is None)
    path.unlink()
    path.parent.rmdir()
    holder.kill()
    thread.join(timeout=60)
    assert taken.is_set()


def test_many_share_a_lock_and_leave_no_note(tmp_path):
    with (tmp_path / "host.lock").open("a") as one, (tmp_path / "host.lock").open("a") as other:
        take(one, fcntl.LOCK_SH)
        take(other, fcntl.LOCK_SH)
    assert (tmp_path / "host.lock").read_text() == ""


def test_a_second_search_in_a_folder_is_told_of_the_first(tmp_path, hold):
    holder = hold(tmp_path / ".demo.lock")
    said = rf"another search is running in it, process {holder.pid} \(.*, since "
    with pytest.raises(ConfigError, match=said), searching_in(tmp_path / "demo"):
        pass
