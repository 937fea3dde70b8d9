"""Signals that ask a process to end, sent to real ones."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked import Forked, run

from kdnas.base.signals import Ended, asked_to_end, raise_ended

ROOT = Path(__file__).resolve().parent.parent
LISTENING = "import os, sys, time; from kdnas.base.signals import Ended, listen; listen();"
READY = "print('ready', flush=True);"
NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP (its terminal was closed)"}


def listen_again():
    """Gives a child the usual signals: what runs these tests may ignore Ctrl-C, as a shell does for `command &`."""
    for number in NAMES:
        signal.signal(number, signal.SIG_DFL)


def start(code, **settings):
    words = [sys.executable, "-c", code]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=listen_again)
    return subprocess.Popen(words, start_new_session=True, **pipes, **settings)


def ended(process, *numbers):
    """Sends signals to a process that is ready; returns what it prints, and its exit status."""
    assert process.stdout.readline() == "ready\n"
    for number in numbers:
        process.send_signal(number)
    # Not `communicate`: it would miss what has been read together with the first line.
    return process.stdout.read(), process.stderr.read(), process.wait(60)


@pytest.mark.parametrize("number", NAMES)
def test_a_signal_ends_a_process_in_one_line_and_with_its_own_status(number):
    out, err, status = ended(start(f"{LISTENING} {READY} time.sleep(60)"), number)
    assert (out, err) == ("", f"ended by {NAMES[number]}; run the same command again to continue\n")
    assert status == -number  # a shell shows 128 + its number, and breaks off the loop around the command


def test_ctrl_c_twice_changes_nothing_and_what_is_registered_is_still_cleaned_up():
    clean = "import atexit; atexit.register(lambda: (time.sleep(0.5), print('cleaned', flush=True)));"
    out, err, status = ended(
        start(f"{LISTENING} {clean} {READY} time.sleep(60)"), signal.SIGINT, signal.SIGINT, signal.SIGTERM
    )
    assert (out, status) == ("cleaned\n", -signal.SIGINT)
    assert err == "ended by Ctrl-C; run the same command again to continue\n"


def test_notes_say_what_goes_on():
    code = f"{LISTENING}\ntry:\n    {READY} time.sleep(60)\nexcept KeyboardInterrupt as error:\n"
    code += "    error.add_note('job 12 goes on'); raise"
    assert (
        ended(start(code), signal.SIGTERM)[1]
        == "ended by SIGTERM; job 12 goes on; run the same command again to continue\n"
    )


def test_other_errors_are_pythons():
    process = start(f"{LISTENING} {READY} sys.stdin.read(); 1 / 0", stdin=subprocess.DEVNULL)
    _, err, status = ended(process)
    assert "Traceback" in err and "ZeroDivisionError" in err and status == 1


def test_what_nohup_ignores_stays_ignored():
    code = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); {LISTENING} {READY}"
    process = start(f"{code} sys.stdin.readline(); print('finished')", stdin=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    assert process.communicate("go on\n", timeout=60)[0] == "finished\n"


def test_a_forked_child_is_left_to_its_parent():
    code = f"{LISTENING} there, begun = os.pipe(); pid = os.fork()\n"
    code += f"if not pid: os.write(begun, b'.'); time.sleep(60)\nos.read(there, 1); {READY}\n"
    code += "os.kill(pid, 15); print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    out, err, status = ended(start(code))
    assert (out, err, status) == ("-15\n", "", 0)


def test_lightnings_answer_to_a_signal_is_seen_through():
    with pytest.raises(SystemExit) as raised:
        try:
            raise Ended(signal.SIGTERM)
        except KeyboardInterrupt:
            sys.exit(1)
    assert asked_to_end(raised.value).number == signal.SIGTERM
    with pytest.raises(SystemExit) as raised:
        sys.exit(3)
    assert asked_to_end(raised.value) is None


def test_ended_is_raised_once_for_signals_that_come_together(monkeypatch):
    monkeypatch.setattr("kdnas.base.signals._raised", [])
    with pytest.raises(Ended):
        raise_ended(signal.SIGINT)
    raise_ended(signal.SIGINT)
    monkeypatch.setattr("kdnas.base.signals._raised", [time.monotonic() - 60])  # somebody swallowed the first
    with pytest.raises(Ended):
        raise_ended(signal.SIGINT)


def in_session(leader):
    """The processes of a session that are not yet dead."""
    there = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state not in "ZX":
            there.append(int(path.parent.name))
    return there


def press(words, times, log, number=signal.SIGINT, session=True):
    """Runs a command until its log has a word so many times, presses Ctrl-C twice, and returns what it said."""
    word, count = times
    with log.open("w") as file:
        process = Forked(words, file, file)
        try:
            while log.read_text().count(word) < count:
                assert process.poll() is None, log.read_text()[-3000:]
                time.sleep(0.02)
            for _ in range(2):
                os.killpg(process.pid, number) if session else process.send_signal(number)
            status = process.wait(timeout=60)
            deadline = time.monotonic() + 30
            while in_session(process.pid) and time.monotonic() < deadline:  # the kernel takes its time
                time.sleep(0.05)
            return log.read_text(), status, in_session(process.pid)
        finally:
            for pid in in_session(process.pid):
                os.kill(pid, signal.SIGKILL)


def test_ctrl_c_ends_joblib_and_its_workers_and_nothing_was_warned_of(tmp_path):
    words = ["tests/sleeping.py", "-m", "seed=0,1", f"paths.runs={tmp_path}/runs"]
    words += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    said, status, left = press(words, ("sleeps", 2), tmp_path / "log")
    *before, last = said.splitlines()
    assert last == "ended by Ctrl-C; run the same command again to continue"
    assert [line for line in before if "sleeps" not in line] == []  # no traceback, no warning
    assert status == -signal.SIGINT and not left


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["basic", "joblib", "local"])
def test_a_search_that_ctrl_c_ends_goes_on(launcher, teacher, tmp_path):
    from optuna.trial import TrialState
    from test_search import TINY

    from kdnas.search.journal import open_storage
    from kdnas.search.study import Study

    def states():
        return [trial.state for trial in Study(open_storage(tmp_path / "search/demo")).trials()]

    own = [] if launcher == "basic" else ["hydra.launcher.n_jobs=2"]
    words = ["search.py", *TINY, f"paths.runs={tmp_path}", f"teacher.path={teacher}"]
    words += ["++teacher.prepare=null", "search.episodes=1", "search.candidates=2", "search.finalists=0"]
    words += ["search.stages.mini.trainer.max_epochs=60", f"hydra/launcher={launcher}", *own]
    word = "submitted 2" if launcher == "local" else "the first of the candidates: epoch"
    said, status, left = press(words, (word, 1), tmp_path / "log")
    assert said.splitlines()[-1] == "ended by Ctrl-C; run the same command again to continue"
    assert "Traceback" not in said and status == -signal.SIGINT and not left
    assert states() == [TrialState.RUNNING] * 2
    if launcher == "local":  # which goes on as it does after a kill
        return
    done = run(words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert states() == [TrialState.COMPLETE] * 2
