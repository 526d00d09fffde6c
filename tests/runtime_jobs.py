"""Runs the runtime of sandbox jobs in plain processes, without walls: started as slot hosts start, forked as jobs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from funicular.rewards.sandbox import codec

_REWARDS = str(Path(codec.__file__).resolve().parent.parent)
_FLAGS = ("-S", "-s", "-P", "-B", "-X", "utf8")
_SECONDS = 60
_BOOT = """
import json, os, sys, types
for name, path in (("funicular", []), ("funicular.rewards", [sys.argv[1]])):
    module = types.ModuleType(name); module.__path__ = path; sys.modules[name] = module
from funicular.rewards.sandbox.slot.runtime import program, serve, tester
order = json.loads(sys.argv[2])
sys.path += order["path"]
if pid := os.fork():
    os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)
os.chdir(order["folder"])
for fd, number in order["descriptors"]:
    os.dup2(fd, number)
source = order["source"].encode("utf-8", "surrogateescape")
if order["kind"] == "program":
    program.run_program(source)
if order["kind"] == "serve":
    serve.serve(source)
tester.run_tester(source, order["options"])
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a process of a job ended."""

    status: int
    stdout: bytes
    stderr: str


def run_program(source: str | bytes, stdin: bytes = b"") -> Ended:
    """Run a program to its end."""
    with tempfile.TemporaryDirectory() as folder:
        process = _start("program", source, folder, {})
        return _end(process, stdin)


class Served:
    """A candidate that answers calls; the caller's side of its channel."""

    def __init__(self, source: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(_SECONDS)
        with theirs:
            self.process = _start("serve", source, self._folder.name, {4: theirs.fileno()})
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
        self._lines.close()
        self.socket.close()
        with self._folder:
            return _end(self.process, b"")

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.close()


def run_tests(solution: str, source: str, **options: Any) -> dict[str, Any]:
    """Run a tester against a candidate; with `candidate` among the options, in one process."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = socket.socketpair()
        result, result_w = os.pipe()
        with ours, theirs:
            serving = _start("serve", solution, folder, {4: theirs.fileno()})
            testing = _start("tester", source, folder, {3: result_w, 4: ours.fileno()}, options)
        os.close(result_w)
        with open(result, "rb") as pipe:
            line = pipe.read()
        ended = _end(testing, b"")
        _end(serving, b"")
    assert line.count(b"\n") == 1, ended
    return json.loads(line)


def _start(
    kind: str, source: str | bytes, folder: str, descriptors: dict[int, int], options: dict[str, Any] | None = None
) -> subprocess.Popen[bytes]:
    text = source if isinstance(source, str) else source.decode("utf-8", "surrogateescape")
    # Above all that the job has, or one would overwrite the other.
    high = [(os.dup(fd), number) for number, fd in descriptors.items()]
    order = {
        "kind": kind,
        "source": text,
        "folder": folder,
        "descriptors": high,
        "options": options or {},
        "path": [path for path in sys.path if path.endswith("site-packages")],
    }
    assert all(fd > 4 for fd, _ in high)
    process = subprocess.Popen(
        [sys.executable, *_FLAGS, "-c", _BOOT, _REWARDS, json.dumps(order)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[fd for fd, _ in high],
        env={},
    )
    for fd, _ in high:
        os.close(fd)
    return process


def _end(process: subprocess.Popen[bytes], stdin: bytes) -> Ended:
    stdout, stderr = process.communicate(stdin, timeout=_SECONDS)
    return Ended(status=process.returncode, stdout=stdout, stderr=stderr.decode(errors="replace"))
