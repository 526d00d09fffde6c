"""Programs that use up memory and stacks, or raise their limits. Each would print the right answer, given enough."""

from __future__ import annotations

from funicular.rewards.sandbox.types import Outcome
from tests.sandbox.programs import DOUBLE, FAILURES, HostileProgram, attack, code

_TIME = frozenset({Outcome.CPU, Outcome.WALL})
_REFUSED = frozenset({Outcome.RUNTIME_ERROR, Outcome.FORBIDDEN})
_MEMORY = frozenset({Outcome.MEMORY, Outcome.RUNTIME_ERROR})
_STACK = _MEMORY | _TIME | {Outcome.SIGNAL}
_ANSWER = "\nprint(int(input()) * 2)\n"


def _program(name: str, why: str, source: str, outcomes: frozenset[Outcome] = FAILURES) -> HostileProgram:
    return HostileProgram(name=name, why=why, source=code(source), tests=DOUBLE, outcomes=outcomes)


PROGRAMS = (
    _program("one_block", "4 GiB at once", "block = bytearray(4 << 30)" + _ANSWER, _MEMORY),
    _program(
        "endless_list",
        "grows a list for ever",
        "blocks = []\nwhile True:\n    blocks.append(bytes(1 << 16))\n",
        _MEMORY,
    ),
    _program(
        "swallowed_memory_errors",
        "allocates for ever, and ignores MemoryError",
        """
        blocks = []
        while True:
            try:
                blocks.append(bytes(1 << 20))
            except MemoryError:
                pass
        """,
        _TIME | _MEMORY,
    ),
    _program(
        "maps",
        "anonymous maps, private and shared, each page touched",
        attack("""
            import mmap
            held = []
            for flags in (mmap.MAP_PRIVATE, mmap.MAP_SHARED) * 20:
                block = mmap.mmap(-1, 32 << 20, flags=flags | mmap.MAP_ANONYMOUS)
                for page in range(0, 32 << 20, 4096):
                    block[page] = 1
                held.append(block)
            return True
        """),
        _MEMORY | _TIME,
    ),
    _program(
        "memfd",
        "memory files, which no limit on the address space counts",
        attack("""
            held = []
            for _ in range(16):
                held.append(os.memfd_create("hoard"))
                for _ in range(64):
                    os.write(held[-1], bytes(1 << 20))
            return True
        """),
        _REFUSED,
    ),
    _program(
        "secret_memfd",
        "memory files through the system calls",
        attack("""
            return call("memfd_create", b"x", 0) >= 0 or call("memfd_secret", 0) >= 0
        """),
        _REFUSED,
    ),
    _program(
        "shared_memory",
        "POSIX and System V shared memory",
        attack("""
            from multiprocessing import shared_memory
            posix = worked(lambda: shared_memory.SharedMemory("funicular-left-shm", create=True, size=1 << 26))
            system_v = call("shmget", 0, 1 << 26, 0o1600) >= 0
            return posix or system_v
        """),
        _REFUSED,
    ),
    _program(
        "stack_overflow",
        "endless recursion, with the interpreter's limit lifted",
        """
        import sys
        sys.setrecursionlimit(1 << 30)
        def f():
            return f() + f()
        f()
        print(int(input()) * 2)
        """,
        _STACK,
    ),
    _program(
        "stack_overflow_in_c",
        "nested calls of C code, which no recursion limit sees",
        """
        import sys
        sys.setrecursionlimit(1 << 30)
        class C:
            pass
        C.__repr__ = lambda s: repr([s])
        repr(C())
        print(int(input()) * 2)
        """,
        _STACK,
    ),
    _program(
        "stack_overflow_in_a_thread",
        "the same in a thread with a stack of 1 GiB",
        """
        import sys, threading
        sys.setrecursionlimit(1 << 30)
        threading.stack_size(1 << 30)
        def f():
            return f() + f()
        t = threading.Thread(target=f)
        t.start()
        t.join()
        print('fell')
        """,
        FAILURES,
    ),
    _program(
        "decompression_bomb",
        "a megabyte that unpacks to a gibibyte, four times",
        """
        import zlib
        part = zlib.compress(bytes(1 << 26), 9)
        held = [zlib.decompress(part) for _ in range(64)]
        print(int(input()) * 2)
        """,
        _MEMORY | _TIME,
    ),
    _program("repeated_list", "a list of 10^11 elements", "x = [0] * 10**11" + _ANSWER, _MEMORY),
    _program("padded_format", "a format width of 10^10", "x = '{:>9999999999}'.format(1)" + _ANSWER, _MEMORY),
    _program("numpy_array", "an array of 8 GiB", "import numpy\nx = numpy.ones(1 << 30)" + _ANSWER, _MEMORY),
    _program(
        "nested_source",
        "an expression nested a hundred thousand times",
        "eval('(' * 100_000 + '1' + ')' * 100_000)" + _ANSWER,
    ),
    _program(
        "nested_unary",
        "a million minus signs, which some parsers walk recursively",
        "import ast\nast.literal_eval('-' * 1_000_000 + '1')" + _ANSWER,
    ),
    _program(
        "raised_limits",
        "raises its own limits, and locks memory",
        attack("""
            import resource
            raised = []
            names = ("AS", "CPU", "NPROC", "FSIZE", "NOFILE", "CORE", "MEMLOCK", "MSGQUEUE")
            for name in names:
                which = getattr(resource, f"RLIMIT_{name}", None)
                if which is None:
                    continue
                soft, hard = resource.getrlimit(which)
                for target in ((resource.RLIM_INFINITY,) * 2, (soft + 1, max(hard + 1, soft + 1))):
                    raised.append(soft != resource.RLIM_INFINITY and worked(resource.setrlimit, which, target))
            return any(raised) or call("mlockall", 3) == 0
        """),
        _REFUSED,
    ),
)
