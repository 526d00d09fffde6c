"""Programs that use up processes, files or output. Each would print the right answer, given enough."""

from __future__ import annotations

from funicular.rewards.sandbox.types import Outcome
from tests.sandbox.programs import DOUBLE, FAILURES, HostileProgram, attack, code

_TIME = frozenset({Outcome.CPU, Outcome.WALL})
_OVERRUN = _TIME | {Outcome.FORBIDDEN}
_REFUSED = frozenset({Outcome.RUNTIME_ERROR, Outcome.FORBIDDEN})
_MEMORY = frozenset({Outcome.MEMORY, Outcome.RUNTIME_ERROR})
_ANSWER = "\nprint(int(input()) * 2)\n"


def _program(name: str, why: str, source: str, outcomes: frozenset[Outcome] = FAILURES) -> HostileProgram:
    return HostileProgram(name=name, why=why, source=code(source), tests=DOUBLE, outcomes=outcomes)


PROCESSES = (
    _program(
        "fork_bomb",
        "forks for ever, and ignores errors",
        """
        import os
        while True:
            try:
                os.fork()
            except OSError:
                pass
        """,
        _OVERRUN,
    ),
    _program(
        "fork_once",
        "one child",
        attack("""
            child = os.fork()
            if child == 0:
                os._exit(0)
            return True
        """),
        _REFUSED,
    ),
    _program(
        "fork_without_libc",
        "clone and clone3 as system calls, with flags of a process",
        attack("""
            import ctypes
            for attempt in (("clone", 17, 0, 0, 0, 0), ("clone", 0x4100 | 17, 0, 0, 0, 0)):
                child = call(*attempt)
                if child == 0:
                    os._exit(0)
                if child > 0:
                    return True
            arguments = ctypes.create_string_buffer(64)
            arguments[32] = 17
            child = call("clone3", arguments, 64)
            if child == 0:
                os._exit(0)
            return child > 0
        """),
        _REFUSED,
    ),
    _program(
        "spawn",
        "other programs through subprocess, posix_spawn, os.system, popen and pty",
        attack("""
            import subprocess
            import pty
            ways = [
                lambda: subprocess.run(["/bin/true"], check=True),
                lambda: os.posix_spawn("/bin/true", ["true"], {}),
                lambda: os.waitstatus_to_exitcode(os.system("true")) and 1 / 0,
                lambda: os.popen("echo out").read() or 1 / 0,
                lambda: pty.fork()[0] or os._exit(0),
            ]
            def went_through(way):
                try:
                    way()
                except Exception:
                    return False
                return True
            return any([went_through(way) for way in ways])
        """),
        _REFUSED,
    ),
    _program(
        "multiprocessing_pool",
        "a pool of processes",
        attack("""
            import multiprocessing
            with multiprocessing.get_context("fork").Pool(4) as pool:
                return pool.map(abs, [-1]) == [1]
        """),
        _REFUSED | _TIME,
    ),
    _program(
        "thread_bomb",
        "five thousand sleeping threads",
        attack("""
            import threading
            threading.stack_size(32768)
            for _ in range(5000):
                threading.Thread(target=threading.Event().wait, args=(20,), daemon=True).start()
            return True
        """),
        _REFUSED | _MEMORY | _TIME,
    ),
    _program(
        "threads_on_all_cores",
        "hashes without the interpreter's lock in eight threads, to hide CPU time in them",
        attack("""
            import hashlib, threading
            def burn():
                block = bytes(1 << 22)
                for _ in range(10_000):
                    hashlib.sha256(block)
            threads = [threading.Thread(target=burn) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return True
        """),
        _TIME,
    ),
)

FILES = (
    _program(
        "one_large_file",
        "a file of 256 MiB",
        """
        with open('f', 'wb') as f:
            for _ in range(256):
                f.write(bytes(1 << 20))
        print(int(input()) * 2)
        """,
        frozenset({Outcome.OUTPUT, Outcome.RUNTIME_ERROR, Outcome.SIGNAL}) | _TIME,
    ),
    _program(
        "many_files",
        "512 MiB in files of 2 MiB, each of which is allowed",
        """
        for i in range(256):
            with open(f'f{i}', 'wb') as f:
                f.write(bytes(2 << 20))
        print(int(input()) * 2)
        """,
        frozenset({Outcome.OUTPUT, Outcome.RUNTIME_ERROR, Outcome.SIGNAL}) | _TIME,
    ),
    _program(
        "sparse_file",
        "a file of 1 TiB without contents",
        attack("""
            with open("f", "wb") as f:
                f.truncate(1 << 40)
            return True
        """),
        frozenset({Outcome.OUTPUT, Outcome.RUNTIME_ERROR, Outcome.SIGNAL, Outcome.FORBIDDEN}),
    ),
    _program(
        "inodes",
        "half a million empty files",
        "for i in range(500_000):\n    open(f'f{i}', 'w').close()" + _ANSWER,
        frozenset({Outcome.OUTPUT, Outcome.RUNTIME_ERROR}) | _TIME,
    ),
    _program(
        "deep_folders",
        "a tree of folders, deep enough to end a recursive delete",
        """
        import os
        for _ in range(5000):
            os.mkdir('d')
            os.chdir('d')
            open('f', 'w').close()
        print('deep')
        """,
    ),
    _program(
        "awkward_names",
        "names that break shells and decoders, folders without permissions, pipes, links to themselves",
        """
        import os
        def attempt(action, *arguments):
            try:
                action(*arguments)
            except OSError as error:
                print(error)
        for name in (b"-rf", b"a\\nb", b"\\xff\\xfe", b"x" * 255, b"..  ", b" ", b"*", b"$(reboot)"):
            attempt(lambda: os.close(os.open(name, os.O_CREAT | os.O_WRONLY)))
        attempt(os.mkfifo, "pipe")
        attempt(os.symlink, "loop", "loop")
        attempt(os.symlink, "/tmp/funicular-bait", "out")
        attempt(os.symlink, "/", "root")
        os.makedirs("locked/inner/deeper")
        open("locked/inner/file", "w").close()
        for path in ("locked/inner/file", "locked/inner/deeper", "locked/inner", "locked", "."):
            attempt(os.chmod, path, 0)
        print("made")
        """,
    ),
    _program(
        "file_descriptors",
        "ten thousand open files",
        attack("""
            held = [os.dup(0) for _ in range(10_000)]
            return True
        """),
        _REFUSED,
    ),
    _program(
        "pipes",
        "kernel memory in pipes and socket pairs",
        attack("""
            import fcntl, socket
            held = 0
            for _ in range(1000):
                reader, writer = os.pipe()
                fcntl.fcntl(writer, 1031, 1 << 20)
                os.set_blocking(writer, False)
                held += os.write(writer, bytes(1 << 20))
            return held > 64 << 20
        """),
        _REFUSED,
    ),
)

OUTPUT = (
    _program(
        "endless_output",
        "prints for ever",
        """
        while True:
            print('x' * 1000)
        """,
        frozenset({Outcome.OUTPUT}),
    ),
    _program(
        "answer_then_blank_lines",
        "the right answer, then 50 MB that a comparison would strip",
        """
        print(int(input()) * 2)
        for _ in range(50):
            print('\\n' * 1_000_000)
        """,
        frozenset({Outcome.OUTPUT}),
    ),
    _program(
        "endless_errors",
        "writes to standard error for ever",
        "import sys\nwhile True:\n    sys.stderr.write('x' * 100_000)\n",
        _TIME | {Outcome.OUTPUT},
    ),
    _program(
        "endless_output_of_threads",
        "four threads that write to the descriptor",
        """
        import os, threading
        def f():
            while True:
                os.write(1, bytes(65536))
        for _ in range(4):
            threading.Thread(target=f).start()
        """,
        _TIME | {Outcome.OUTPUT},
    ),
)

PROGRAMS = (*PROCESSES, *FILES, *OUTPUT)
