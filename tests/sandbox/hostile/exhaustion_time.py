"""Programs that use up time: CPU time that hides, wall time, better places in the queue for a core."""

from __future__ import annotations

from funicular.rewards.sandbox.types import Outcome
from tests.sandbox.programs import DOUBLE, HostileProgram, attack, code, stdio

_TIME = frozenset({Outcome.CPU, Outcome.WALL})
_REFUSED = frozenset({Outcome.RUNTIME_ERROR, Outcome.FORBIDDEN})
_MEMORY = frozenset({Outcome.MEMORY, Outcome.RUNTIME_ERROR})
_ANSWER = "\nprint(int(input()) * 2)\n"


def _program(name: str, why: str, source: str, outcomes: frozenset[Outcome] = _TIME) -> HostileProgram:
    return HostileProgram(name=name, why=why, source=code(source), tests=DOUBLE, outcomes=outcomes)


TIME = (
    _program("loop", "an endless loop", "while True:\n    pass\n", _TIME),
    _program(
        "loop_in_c",
        "an endless loop inside one C call",
        """
        import itertools
        sum(itertools.repeat(1))
        """,
        _TIME,
    ),
    _program(
        "regex",
        "a regular expression that backtracks",
        "import re\nre.match('(a+)+$', 'a' * 64 + 'b')" + _ANSWER,
        _TIME,
    ),
    _program(
        "big_power",
        "a power with billions of digits, then its decimal text",
        """
        import sys
        sys.set_int_max_str_digits(0)
        x = str(7 ** 30_000_000)
        print(int(input()) * 2)
        """,
        _TIME | _MEMORY,
    ),
    _program("sleep", "sleeps an hour", "import time\ntime.sleep(3600)" + _ANSWER, _TIME),
    _program(
        "wait_for_nothing",
        "reads a pipe that nobody writes",
        """
        import os
        os.read(os.pipe()[0], 1)
        print(int(input()) * 2)
        """,
        _TIME,
    ),
    _program(
        "blocked_signals",
        "blocks and ignores every signal, then loops",
        """
        import signal
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        for number in signal.valid_signals():
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        while True:
            pass
        """,
        _TIME,
    ),
    _program(
        "answer_when_time_is_up",
        "answers from the handler of the signal that says that its time is up",
        """
        import os, signal
        def late(*_):
            os.write(1, b"42\\n")
            os._exit(0)
        for name in ("SIGXCPU", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGTERM", "SIGINT"):
            signal.signal(getattr(signal, name), late)
        while True:
            pass
        """,
        _TIME,
    ),
    _program(
        "thread_that_stays",
        "answers, then a thread keeps the process alive",
        """
        import threading
        print(int(input()) * 2, flush=True)
        threading.Thread(target=threading.Event().wait).start()
        """,
        _TIME,
    ),
    _program(
        "exit_handler_that_stays",
        "answers, then an exit handler loops",
        """
        import atexit
        @atexit.register
        def stay():
            while True:
                pass
        print(int(input()) * 2, flush=True)
        """,
        _TIME,
    ),
    _program(
        "stopped",
        "answers, then stops itself",
        """
        import signal
        print(int(input()) * 2, flush=True)
        signal.raise_signal(signal.SIGSTOP)
        while True:
            pass
        """,
        _TIME | _REFUSED,
    ),
    _program(
        "better_scheduling",
        "a real-time class, other cores, higher priority, also for its parent",
        attack("""
            import struct, time
            parent = os.getppid()
            priority = struct.pack("i", 1)
            got = [call("sched_setscheduler", who, policy, priority) for who in (0, parent) for policy in (1, 2)]
            got.append(call("sched_setattr", 0, struct.pack("IIQiIQQQ", 48, 1, 0, 0, 1, 0, 0, 0), 0))
            got.append(call("sched_setaffinity", parent, 8, bytes([1]) + bytes(7)))
            got.append(call("setpriority", 0, 0, -5))
            got.append(call("setpriority", 0, parent, 19))
            got.append(call("ioprio_set", 1, parent, 3 << 13))
            return any(result >= 0 for result in got)
        """),
        _REFUSED,
    ),
    _program(
        "hash_collisions",
        "a dictionary whose keys all collide",
        "d = {i * (2**61 - 1): i for i in range(200_000)}" + _ANSWER,
        _TIME,
    ),
)

MANY_CASES = HostileProgram(
    name="slow_on_the_last_case",
    why="fast on four inputs, endless on the fifth",
    source="n = int(input())\nwhile n == 5:\n    pass\nprint(2 * n)\n",
    tests=stdio(*((f"{n}\n", f"{2 * n}\n") for n in range(1, 6))),
    outcomes=_TIME,
)

PROGRAMS = (*TIME, MANY_CASES)
