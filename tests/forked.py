"""Processes that run a script as `python <script> <words>` does, but for the seconds that its imports take.

They are forks of one process that has imported everything, and otherwise are started, killed and waited for as those
of `subprocess.Popen`.
"""

import gc
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

ROOT = Path(__file__).resolve().parent.parent
ENTRIES = ("kdnas.app.console", "kdnas.costs.__main__")
"""Modules that do something when they are imported."""
FURTHER = ("transformers.models.bert.modeling_bert", "matplotlib.backends.backend_agg")
LIMIT = 1 << 16
"""Bytes of a request: a script, its arguments and what its environment has besides."""


class Forked:
    """A process, begun in a session of its own; `words` are a script and its arguments."""

    def __init__(self, words, stdout, stderr, cwd=ROOT, environment=None):
        self._status, theirs = os.pipe()
        request = json.dumps([str(cwd), [str(word) for word in words], environment or {}]).encode()
        socket.send_fds(parent(), [request], [stdout.fileno(), stderr.fileno(), theirs])
        os.close(theirs)
        (self.pid,) = struct.unpack("i", os.read(self._status, 4))
        self.returncode = None

    def wait(self, timeout=None):
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a forked process", timeout)
            (self.returncode,) = struct.unpack("i", os.read(self._status, 4))
            os.close(self._status)
        return self.returncode

    def poll(self):
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def run(words, timeout=900, **settings):
    """Runs a process to its end, as `subprocess.run` with captured text."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = Forked(words, out, err, **settings)
        try:
            process.wait(timeout)
        finally:
            process.kill()  # unless it has ended
        out.seek(0), err.seek(0)
        return subprocess.CompletedProcess(words, process.returncode, out.read(), err.read())


@cache
def parent():
    """The socket of the process that forks; it ends when these tests do."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.Popen([sys.executable, __file__], stdin=theirs, cwd=ROOT, env=environment)
    theirs.close()
    return ours


def import_everything():
    from hydra.core.plugins import Plugins

    import kdnas

    Plugins.instance()  # first: Hydra runs its plugins' modules anew, also where they have been imported
    for module in walk_packages(kdnas.__path__, "kdnas."):
        if module.name not in ENTRIES:
            import_module(module.name)
    for name in FURTHER:
        import_module(name)
    gc.collect()
    gc.freeze()  # so that a fork's garbage collector copies none of it


def fork_and_report(status):
    """Forks twice, and returns in the second fork (true) and in this process (false).

    The first fork waits for the second, and writes its number and its exit status.
    """
    if os.fork():
        return False
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if not (pid := os.fork()):
        os.setsid()
        return True
    with suppress(BrokenPipeError):  # the tests have ended before
        os.write(status, struct.pack("i", pid))
        os.write(status, struct.pack("i", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
    os._exit(0)


def next_command():
    """Returns from each fork with its script and arguments; from this process when the tests have ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the first forks
    with socket.socket(fileno=os.dup(0)) as requests:
        while True:
            request, descriptors, _, _ = socket.recv_fds(requests, LIMIT, 3)
            if not request:
                return None
            if fork_and_report(descriptors[2]):
                break
            for descriptor in descriptors:
                os.close(descriptor)
    cwd, words, environment = json.loads(request)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `command &` ignores it
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(descriptors[0], 1)
    os.dup2(descriptors[1], 2)
    for descriptor in descriptors:
        os.close(descriptor)
    os.chdir(cwd)
    os.environ.update(environment)
    return words


if __name__ == "__main__":
    import_everything()
    if words := next_command():
        sys.argv = words
        sys.path[0] = str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")
