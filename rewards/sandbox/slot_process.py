"""A slot, as its owner sees it: start it, run one job at a time, kill it."""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Any

from funicular.rewards.sandbox import switches
from funicular.rewards.sandbox.slot import cleaning, native, wire
from funicular.rewards.sandbox.slot.wire import Job
from funicular.rewards.sandbox.types import JobReport, Level, Outcome

log = logging.getLogger(__name__)

DEFAULT_PRELOAD = (
    *("json", "math", "cmath", "collections", "heapq", "bisect", "itertools", "functools", "operator", "re"),
    *("random", "string", "typing", "decimal", "fractions", "datetime", "threading", "queue", "copy", "io"),
    *("statistics", "dataclasses", "enum", "abc", "time", "traceback", "unittest", "numpy"),
)
"""Modules that a job finds imported already; numpy only if it is installed."""

_START_S = 30.0
_GRACE_S = 5.0
"""Beyond a job's wall time, after which its slot counts as stuck."""
_KILL_S = 10.0
_REMOVE_S = 30.0
_LOG_BYTES = 2000
_NUMBERS_OF_OWNER, _NUMBERS = 64, 4000
"""Numbers of slots: those that one owner uses, as long as it has no more slots, and all that there are."""
_PACKAGES = {"bash": "bash", "cpp": "g++", "javascript": "nodejs"}
_REWARDS_FOLDER = str(Path(__file__).resolve().parent.parent)
_FLAGS = ("-S", "-s", "-P", "-B", "-X", "utf8")
# -I without -E: the hash seed comes by the environment, which holds nothing that is not named here
_ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # else verdicts on programs that print a set would differ between slots
    "MALLOC_ARENA_MAX": "2",  # an arena takes 64 MiB of a job's address space
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
# our packages by hand: without site-packages there are no import hooks, and nothing else is needed
_BOOT = """
import sys, types
for name, path in (("funicular", []), ("funicular.rewards", [sys.argv[2]])):
    module = types.ModuleType(name); module.__path__ = path; sys.modules[name] = module
from funicular.rewards.sandbox.slot.host import main
main()
"""


class SlotRole(StrEnum):
    """What a slot is for."""

    CANDIDATE = "candidate"
    """Judged Python."""
    TESTER = "tester"
    """Trusted test code, which meets untrusted replies."""
    NATIVE = "native"
    """bash, C++ and JavaScript: may start processes; L3 only."""


def missing_tool(language: str) -> str | None:
    """What this node lacks to run programs in a language, for people; None: nothing."""
    if language == "python" or native.tool(language) is not None:
        return None
    if language not in native.TOOLS:
        return f"{language} is no language of the sandbox: python, {', '.join(native.TOOLS)}"
    name = Path(native.TOOLS[language][0]).name
    return (
        f"this node has no {name} below /usr, which {language} programs need: install the package {_PACKAGES[language]}"
    )


class SlotFailed(RuntimeError):
    """A slot could not start, or is not confined."""

    def __init__(self, reason: str, switch: str = "") -> None:
        super().__init__(f"{reason}; to change: {switch}" if switch else reason)
        self.reason = reason
        self.switch = switch
        """What to change on this node, if it is known."""


class SlotLost(RuntimeError):
    """A slot died or fell silent during a job: `infra_error`. It is killed already; its owner needs a new one."""


class SlotProcess:
    """One slot. One thread at a time may run jobs; any thread may kill it."""

    def __init__(
        self,
        *,
        role: SlotRole,
        level: Level,
        name: str,
        python: str = sys.executable,
        preload: Sequence[str] = DEFAULT_PRELOAD,
        slot_number: int = 0,
    ) -> None:
        """Start it and wait until it is ready.

        Args:
            python: interpreter of the jobs; numpy comes from its environment.
            preload: modules to import before the first job.
            slot_number: of the slot among those of this process. Jobs of different slots, of other processes too,
                then mostly have different user ids outside; where two share one, they share its limit of processes.

        Raises:
            SlotFailed: it did not become ready.
        """
        if role is SlotRole.NATIVE and level is not Level.L3:
            raise SlotFailed(f"native programs need level L3, not {level}", switches.to_reach(Level.L3, None))
        self.role, self.level, self.name = role, level, name
        self.jobs = 0
        self.worn = False
        """It left something behind that took too long to remove: replace it."""
        self.canary = secrets.token_hex(16)
        self.details: dict[str, str] = {}
        """What this node gave it and what not."""
        self._rss_mib = 0.0
        self._dead = threading.Lock()
        self._closed = False
        """Killed: its descriptors may be someone else's by now."""
        site = site_folder(python)
        self._folder = _make_folder(self.canary) if level is Level.L1 else ""
        setup = {
            "level": level,
            "native": role is SlotRole.NATIVE,
            "number": _number(slot_number, role),
            "preload": [module for module in preload if module != "numpy" or site is not None],
            "site": site,
            "canary": self.canary,
            "folder": self._folder,
        }
        self._log = os.memfd_create("slot-log", os.MFD_CLOEXEC)
        self._control, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [python, *_FLAGS, "-c", _BOOT, str(theirs.fileno()), _REWARDS_FOLDER],
                    env=_ENVIRONMENT,
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._log,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        except OSError as error:
            self._control.close()
            os.close(self._log)
            _remove(self._folder)
            raise SlotFailed(f"{python} did not start: {error}") from error
        self._await_ready(setup)

    def _await_ready(self, setup: dict[str, Any]) -> None:
        self._control.settimeout(_START_S)
        try:
            wire.send(self._control, setup)
            answer, _ = wire.receive(self._control)
        except (OSError, ValueError) as error:
            said = self._read_log()
            stuck = self._kill_now()
            reason = f"slot {self.name} at {self.level} did not start: {error}. {said}{stuck}"
            raise SlotFailed(reason) from error
        if "failed" in answer:
            stuck = self._kill_now()
            reason = f"slot {self.name} at {self.level}: {answer['failed']}{stuck}"
            raise SlotFailed(reason, switches.to_reach(self.level, answer["errno"]))
        self.details = answer["ready"]
        self._rss_mib = answer["rss_mib"]

    @property
    def pid(self) -> int:
        """Of the process that we started; at L3 the one that serves is its child, in another pid namespace."""
        return self._process.pid

    def rss_mib(self) -> float:
        """Memory of the slot host between jobs, as it was after the last one."""
        return self._rss_mib

    def run(self, job: Job, *, calls: socket.socket | None = None) -> JobReport:
        """Run one job and wait for its end.

        Args:
            calls: the job's end of the call channel; closed here, whatever happens.

        Raises:
            SlotLost: the slot died, fell silent, or could not confine the job.
        """
        compiling_s = native.compile_limits(job.limits).longest_wall_s if job.options.get("language") == "cpp" else 0.0
        header = {
            "kind": job.kind,
            "limits": asdict(job.limits),
            "options": job.options,
            "calls": calls is not None,
        }
        try:
            try:
                self._control.settimeout(job.limits.longest_wall_s + compiling_s + _GRACE_S)
                wire.send(self._control, header, job.source, job.stdin)
                if calls is not None:
                    socket.send_fds(self._control, [b"c"], [calls.fileno()])
            finally:
                if calls is not None:
                    calls.close()
            answer, blobs = wire.receive(self._control)
        except (OSError, ValueError) as error:
            reason = f"slot {self.name} ({self.level}, {self.role}) was lost: {type(error).__name__}: {error}"
            said = self._read_log()
            raise SlotLost(f"{reason}. {said}{self._kill_now()}") from error
        if "lost" in answer:
            reason = f"slot {self.name} ({self.level}, {self.role}): {answer['lost']}"
            raise SlotLost(f"{reason}{self._kill_now()}")
        stdout, stderr, result = [*blobs, b"", b"", b""][:3]
        self.jobs += 1
        self.worn = self.worn or answer["worn"]
        self._rss_mib = answer["rss_mib"]
        return JobReport(
            outcome=Outcome(answer["outcome"]),
            exit_code=answer["exit_code"],
            cpu_s=answer["cpu_s"],
            wall_s=answer["wall_s"],
            peak_rss_mib=answer["peak_rss_mib"],
            stdout=stdout,
            stderr=stderr,
            result=result,
            denied=answer["denied"],
        )

    def kill(self) -> None:
        """Kill everything in it and remove its folder. May be called at any time, and more than once.

        Raises:
            subprocess.TimeoutExpired: the kernel did not end it within ten seconds.
        """
        with self._dead:
            if self._closed:
                return
            # at L3 the death of this process kills PID 1 inside, and that everything; at L1 it kills the one job
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            try:
                self._process.wait(_KILL_S)
            finally:
                self._closed = True
                with suppress(OSError):
                    self._control.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for a report
                self._control.close()
                os.close(self._log)
                _remove(self._folder)

    def _kill_now(self) -> str:
        """Kill it where something has failed already. Returns what is to be added to that, if it does not end."""
        try:
            self.kill()
        except subprocess.TimeoutExpired as error:
            return f" It was killed and did not end: {error}"
        return ""

    def _read_log(self) -> str:
        with self._dead:
            if self._closed:
                return ""
            return os.pread(self._log, _LOG_BYTES, max(0, os.fstat(self._log).st_size - _LOG_BYTES)).decode(
                errors="replace"
            )


def _number(slot_number: int, role: SlotRole) -> int:
    number = os.getpid() * _NUMBERS_OF_OWNER + slot_number * len(SlotRole) + list(SlotRole).index(role)
    return number % _NUMBERS


def site_folder(python: str) -> str | None:
    """Folder of third-party modules in the environment of `python`, by where numpy is; None: it has no numpy."""
    if python == sys.executable:
        spec = importlib.util.find_spec("numpy")
        return None if spec is None or spec.origin is None else str(Path(spec.origin).resolve().parent.parent)
    return _ask_site_folder(python)


@functools.cache
def _ask_site_folder(python: str) -> str | None:
    question = "import importlib.util as u, json; s = u.find_spec('numpy'); print(json.dumps(s and s.origin))"
    try:
        asked = subprocess.run(
            [python, "-I", "-c", question], capture_output=True, timeout=_START_S, check=True, cwd="/"
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise SlotFailed(f"{python} did not say where its numpy is: {error}") from error
    origin = json.loads(asked.stdout)
    return None if origin is None else str(Path(origin).resolve().parent.parent)


def _make_folder(canary: str) -> str:
    """At L1: the working folder, and beside it what looks like expected outputs."""
    folder = os.path.realpath(tempfile.mkdtemp(prefix="funicular-slot-"))
    os.mkdir(f"{folder}/work", 0o700)
    os.mkdir(f"{folder}/tests", 0o755)
    Path(f"{folder}/tests/expected_output.json").write_text(json.dumps({"expected_output": canary}))
    return folder


def _remove(folder: str) -> None:
    if not folder:
        return
    try:
        cleaning.empty(folder, _REMOVE_S)
        os.rmdir(folder)
    except (OSError, cleaning.TooMuch) as error:
        if os.path.lexists(folder):  # the slot host removes it too, when it ends by itself
            log.warning("the folder %s of a slot stays behind: %s: %s", folder, type(error).__name__, error)
