"""Memory of a process and all below it: proportional set sizes, in which shared pages count once.

`PeakMemory` watches a variant; `imports_bytes` says what its processes take before they do anything.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence

import psutil

_READY_S = 300.0


class PeakMemory:
    """Largest sum over a process and all below it, from a thread; and what each kind of process had then."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._ended = threading.Event()
        self.parts: Mapping[str, int] = {}
        """Bytes by kind of process, at the peak."""
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            now = memory_of(self._process)
            if sum(now.values()) > self.bytes:
                self.parts = now

    @property
    def bytes(self) -> int:
        return sum(self.parts.values())

    def stop(self) -> int:
        """End, and return the peak."""
        self._ended.set()
        self._thread.join()
        return self.bytes


def memory_of(process: psutil.Process) -> dict[str, int]:
    """Bytes by kind of process; nothing if it has ended."""
    try:
        processes = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return {}
    total: dict[str, int] = {}
    for one in processes:
        try:
            kind, size = _kind(one.cmdline()), one.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended since it was listed
        total[kind] = total.get(kind, 0) + size
    return total


def _kind(command: Sequence[str]) -> str:
    title = command[0] if command else "?"
    if title.startswith("ray::"):
        return title.removeprefix("ray::").partition(".")[0].strip()
    if title.startswith("VLLM::"):
        return title.removeprefix("VLLM::").strip()
    words = " ".join(command)
    return "driver" if "funicular.launch.cli" in words else "Ray" if "/ray/" in words else "others"


def imports_bytes(statements: Sequence[str]) -> int:
    """Bytes of processes that have each run one of these statements, all of them there at the same time."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", f"{statement}\nprint('ready', flush=True)\ninput()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for statement in statements
    ]
    try:
        for statement, process in zip(statements, processes, strict=True):
            _await_ready(statement, process)
        return sum(sum(memory_of(psutil.Process(process.pid)).values()) for process in processes)
    finally:
        for process in processes:
            process.communicate("\n", timeout=_READY_S)


def _await_ready(statement: str, process: subprocess.Popen[str]) -> None:
    watch = threading.Timer(_READY_S, process.kill)
    watch.start()
    try:
        if process.stdout is None or not any(line.strip() == "ready" for line in process.stdout):
            raise RuntimeError(f"not imported within {_READY_S:.0f} s, or it failed: {statement}")
    finally:
        watch.cancel()
