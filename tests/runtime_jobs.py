"""Runs the runtime of sandbox jobs without walls, in forks of one warm process, as slot hosts fork jobs."""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from funicular.rewards.sandbox import codec
from funicular.rewards.sandbox.slot_process import DEFAULT_PRELOAD

_REWARDS = str(Path(codec.__file__).resolve().parent.parent)
_FLAGS = ("-S", "-s", "-P", "-B", "-X", "utf8")
_SECONDS = 60
_HOST = """
import fcntl, gc, importlib, json, os, signal, socket, sys, types
for name, path in (("funicular", []), ("funicular.rewards", [sys.argv[1]])):
    module = types.ModuleType(name); module.__path__ = path; sys.modules[name] = module
from funicular.rewards.sandbox.slot.runtime import program, serve, tester
requests = socket.socket(fileno=int(sys.argv[2]))
sys.path += json.loads(sys.argv[3])
for name in json.loads(sys.argv[4]):
    importlib.import_module(name)
gc.freeze()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes that wait for jobs

def run(order, fds):
    os.chdir(order["folder"])
    # first above all that the job has, or one would overwrite the other
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 64) for fd in fds]
    os.closerange(0, 64)
    for fd, number in zip(high, order["numbers"]):
        os.dup2(fd, number)
    os.closerange(5, 256)
    source = order["source"].encode("utf-8", "surrogateescape")
    if order["kind"] == "program":
        program.run_program(source)
    if order["kind"] == "serve":
        serve.serve(source)
    tester.run_tester(source, order["options"])

while True:
    path, fds, _, _ = socket.recv_fds(requests, 4096, 8)
    if not path:
        break
    if os.fork() == 0:
        with open(path) as order:
            order = json.load(order)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        answer = fds.pop()
        if (pid := os.fork()) == 0:
            run(order, fds)
        for fd in fds:
            os.close(fd)
        os.write(answer, b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        os._exit(0)
    for fd in fds:
        os.close(fd)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a process of a job ended."""

    status: int
    stdout: bytes
    stderr: str


class Job:
    """A job under way. Its streams are files in a folder beside the job's own.

    Args:
        descriptors: what the job gets besides, by number.
    """

    def __init__(
        self,
        kind: str,
        source: str | bytes,
        *,
        stdin: bytes = b"",
        descriptors: dict[int, int] | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        beside = Path(self._folder.name)
        (beside / "work").mkdir()
        (beside / "stdin").write_bytes(stdin)
        numbers = {0: os.open(beside / "stdin", os.O_RDONLY)}
        for number, name in ((1, "stdout"), (2, "stderr")):
            numbers[number] = os.open(beside / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        own = list(numbers.values())
        numbers |= descriptors or {}
        order = {
            "kind": kind,
            "source": source if isinstance(source, str) else source.decode("utf-8", "surrogateescape"),
            "folder": str(beside / "work"),
            "numbers": list(numbers),
            "options": options or {},
        }
        (beside / "order").write_text(json.dumps(order))
        self._answer, answer = os.pipe()
        socket.send_fds(_host(), [str(beside / "order").encode()], [*numbers.values(), answer])
        for fd in (*own, answer):
            os.close(fd)

    def end(self) -> Ended:
        """Wait until it has ended."""
        ready, _, _ = select.select([self._answer], [], [], _SECONDS)
        assert ready, f"the job has not ended after {_SECONDS} s"
        status = int(os.read(self._answer, 20))
        os.close(self._answer)
        beside = Path(self._folder.name)
        written = Ended(
            status=status & 0xFF,
            stdout=(beside / "stdout").read_bytes(),
            stderr=(beside / "stderr").read_text(errors="replace"),
        )
        self._folder.cleanup()
        return written


def run_program(source: str | bytes, stdin: bytes = b"") -> Ended:
    """Run a program to its end."""
    return Job("program", source, stdin=stdin).end()


class Served:
    """A candidate that answers calls; the caller's side of its channel."""

    def __init__(self, source: str) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(_SECONDS)
        with theirs:
            self._job: Job | None = Job("serve", source, descriptors={4: theirs.fileno()})
        self._lines = self.socket.makefile("rb")
        self.ready = self.read()

    def read(self) -> Any:
        """The next message; None: it closed."""
        line = self._lines.readline()
        return codec.loads(line) if line else None

    def ask(self, function: str, *arguments: Any, mutations: bool = False, **more: Any) -> Any:
        """Call and return the reply."""
        request = {"id": 7, "function": function, "args": codec.encode(arguments), "mutations": mutations, **more}
        self.socket.sendall(codec.dumps(request) + b"\n")
        return self.read()

    def close(self) -> Ended:
        """Close the channel and wait for the end of the process."""
        assert self._job is not None
        self._lines.close()
        self.socket.close()
        job, self._job = self._job, None
        return job.end()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        if self._job is not None:
            self.close()


def run_tests(solution: str, source: str, **options: Any) -> dict[str, Any]:
    """Run a tester against a candidate; with `candidate` among the options, in one process."""
    ours, theirs = socket.socketpair()
    result, result_w = os.pipe()
    with ours, theirs:
        serving = Job("serve", solution, descriptors={4: theirs.fileno()})
        testing = Job("tester", source, descriptors={3: result_w, 4: ours.fileno()}, options=options)
    os.close(result_w)
    with open(result, "rb") as pipe:
        line = pipe.read()
    ended = testing.end()
    serving.end()
    assert line.count(b"\n") == 1, ended
    return json.loads(line)


@functools.cache
def _host() -> socket.socket:
    """Requests to the warm process, which ends when they do."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    packages = [path for path in sys.path if path.endswith("site-packages")]
    arguments = [_REWARDS, str(theirs.fileno()), json.dumps(packages), json.dumps(DEFAULT_PRELOAD)]
    host = subprocess.Popen(
        [sys.executable, *_FLAGS, "-c", _HOST, *arguments], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env={}
    )
    theirs.close()
    atexit.register(host.wait, _SECONDS)
    atexit.register(ours.close)
    return ours
