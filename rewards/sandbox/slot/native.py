"""Programs that are not Python: bash, C++, JavaScript. Level L3 only, since they need fork and execve.

Sources are files that only the slot host can write. A compiled program is moved out of the job's reach before
anything else runs in the slot, under the hash of what it was compiled from.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import OrderedDict
from dataclasses import replace

from funicular.rewards.sandbox.slot import kernel
from funicular.rewards.sandbox.slot.limits import Memory
from funicular.rewards.sandbox.slot.namespaces import BUILD, INPUT, WORK
from funicular.rewards.sandbox.slot.wire import JobKind
from funicular.rewards.sandbox.slot.work import Work
from funicular.rewards.sandbox.types import Limits

TOOLS = {
    "bash": ("/usr/bin/bash", "/bin/bash"),
    "cpp": ("/usr/bin/g++", "/usr/local/bin/g++"),
    "javascript": ("/usr/bin/node", "/usr/local/bin/node"),
}
"""Where the interpreter or compiler of a language may be: only /usr is visible in a slot."""

_SUFFIXES = {"bash": "sh", "cpp": "cpp", "javascript": "js"}
_FLAGS = ("-x", "c++", "-std=gnu++17", "-O2")
_COMPILER_MIB, _COMPILER_CPU_S, _COMPILER_DISK_MIB = 2048, 10.0, 64
_PROGRAM_MIB = 64
_BUILD_MIB = 256
_KEPT_BYTES = (_BUILD_MIB - _PROGRAM_MIB) << 20
_NODE_OWN_MIB = 160
"""Writable memory of an idle V8 with its threads, beyond the program's heap."""
_STACK_MIB, _THREADS_MIB = 128, 1024
"""A thread of a program reserves as much as its main thread's stack may grow: addresses beyond its memory."""
_COPY_BYTES = 1 << 20


def tool(language: str) -> str | None:
    """Path of the interpreter or compiler of a language, on this node; None: there is none, or not below /usr."""
    for path in TOOLS.get(language, ()):
        real = os.path.realpath(path)
        if real.startswith("/usr/") and os.access(real, os.X_OK):
            return real
    return None


def compile_limits(limits: Limits) -> Limits:
    """Of the compiler: what a program may use says nothing of what its compiler needs."""
    return replace(
        limits,
        cpu_s=max(limits.cpu_s, _COMPILER_CPU_S),
        memory_mib=max(limits.memory_mib, _COMPILER_MIB),
        disk_mib=max(limits.disk_mib, _COMPILER_DISK_MIB),
    )


class NativePrograms:
    """The programs of one slot; made before its root is entered, which hides where links lead."""

    def __init__(self) -> None:
        self._tools = {language: tool(language) for language in TOOLS}
        self._compiled: OrderedDict[str, int] = OrderedDict()

    def mount(self) -> None:
        """Mount the folder of compiled programs. Nobody may list it, and the names are hashes of the sources: only
        who knows a source finds its program.

        Raises:
            OSError: the mount was refused.
        """
        kernel.mount("none", BUILD, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, f"size={_BUILD_MIB}m,mode=111")
        self._protect()

    def needs_compiling(self, work: Work) -> bool:
        """Whether a C++ program is not there yet."""
        return _language(work) == "cpp" and _key(work.source) not in self._compiled

    def source_file(self, work: Work) -> str:
        """Name, in the folder of inputs, of the file in which a job's source is expected."""
        return f"program.{_SUFFIXES[_language(work)]}"

    def argv(self, work: Work) -> list[str]:
        """What to execute.

        Raises:
            FileNotFoundError: this node has no such interpreter or compiler.
            ValueError: no such language.
        """
        language = _language(work)
        program, source = self._tools[language], f"{INPUT}/{self.source_file(work)}"
        if program is None:
            raise FileNotFoundError(f"this node has no {os.path.basename(TOOLS[language][0])} below /usr")
        if work.kind is JobKind.COMPILE:
            return [program, *_FLAGS, "-o", f"{WORK}/program", source]
        if language == "cpp":
            self._compiled.move_to_end(_key(work.source))
            return [f"{BUILD}/{_key(work.source)}"]
        if language == "bash":
            return [program, "--noprofile", "--norc", source]
        return [program, f"--max-old-space-size={work.limits.memory_mib}", source]

    def memory(self, work: Work) -> Memory:
        """Memory of one process of a job. What all use together is watched."""
        memory_mib = work.limits.memory_mib
        if _language(work) == "javascript":
            # V8 reserves more addresses than any limit would allow
            return Memory(writable=(memory_mib + _NODE_OWN_MIB) << 20)
        if _language(work) == "cpp" and work.kind is JobKind.EXEC:
            return Memory(address_space=(memory_mib + _THREADS_MIB) << 20, stack_mib=_STACK_MIB)
        return Memory(address_space=memory_mib << 20)

    def keep(self, work: Work) -> str:
        """Take the program that a compilation left in the working folder.

        Returns:
            Why there is none; empty: it is kept.
        """
        try:
            fd = os.open(f"{WORK}/program", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            return f"the compiler left no program: {error}"
        try:
            state = os.fstat(fd)
            if not stat.S_ISREG(state.st_mode) or state.st_size > _PROGRAM_MIB << 20:
                return f"the program is no file of at most {_PROGRAM_MIB} MiB"
            self._store(_key(work.source), fd, state.st_size)
        finally:
            os.close(fd)
        return ""

    def _store(self, key: str, fd: int, size: int) -> None:
        kernel.mount(None, BUILD, None, kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_NOSUID | kernel.MS_NODEV)
        try:
            while self._compiled and sum(self._compiled.values()) + size > _KEPT_BYTES:
                oldest, _ = self._compiled.popitem(last=False)
                os.unlink(f"{BUILD}/{oldest}")
            copy = os.open(f"{BUILD}/{key}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o755)
            try:
                while chunk := os.read(fd, _COPY_BYTES):
                    os.write(copy, chunk)
            finally:
                os.close(copy)
            self._compiled[key] = size
        finally:
            self._protect()

    def _protect(self) -> None:
        flags = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
        kernel.mount(None, BUILD, None, flags)


def _language(work: Work) -> str:
    language = "cpp" if work.kind is JobKind.COMPILE else str(work.options.get("language"))
    if language not in TOOLS:
        raise ValueError(f"language {language!r}; a native slot knows {', '.join(TOOLS)}")
    return language


def _key(source: memoryview) -> str:
    return hashlib.sha256(" ".join(_FLAGS).encode() + b"\0" + source).hexdigest()
