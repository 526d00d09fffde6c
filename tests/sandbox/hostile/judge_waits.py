"""Denial of service against the judge: programs that make it wait, or keep it and the kernel busy."""

from __future__ import annotations

from funicular.rewards.sandbox.types import Outcome, TesterStyle, TestSet
from tests.sandbox.programs import DOUBLE, FORGING, HostileProgram, calls, code, judged_by

_TIME = frozenset({Outcome.WALL, Outcome.CPU})
_LATE = _TIME | {Outcome.RUNTIME_ERROR}
_FLOOD = _TIME | {Outcome.PROTOCOL, Outcome.OUTPUT, Outcome.RUNTIME_ERROR}
_ONE = calls(((1,), 1))
_LARGE = calls((("x" * 3_000_000,), 1))
_READY = "say({'ready': {'functions': ['solve'], 'classes': [], 'coroutines': [], 'exceptions': {}}})\n"


def _serves(
    name: str, why: str, body: str, tests: TestSet = _ONE, outcomes: frozenset[Outcome] = _LATE
) -> HostileProgram:
    """The body of its function."""
    lines = "".join(f"    {line}\n" for line in code(body).splitlines())
    source = f"{FORGING}\nimport time\ndef solve(n):\n{lines}"
    return HostileProgram(name=name, why=why, source=source, tests=tests, outcomes=outcomes)


def _begins(
    name: str, why: str, source: str, tests: TestSet = _ONE, outcomes: frozenset[Outcome] = _LATE
) -> HostileProgram:
    source = f"{FORGING}\nimport time\n{code(source)}"
    return HostileProgram(name=name, why=why, source=source, tests=tests, outcomes=outcomes)


def _storms(name: str, why: str, source: str, outcomes: frozenset[Outcome]) -> HostileProgram:
    return HostileProgram(name=name, why=why, source=code(source), tests=DOUBLE, outcomes=outcomes)


WAITING = (
    _serves(
        "slow_reply",
        "one byte of its reply at a time",
        """
        for byte in b'{"id": 0, "value": 1' + b' ' * 1000 + b'}\\n':
            write(bytes([byte]))
            time.sleep(0.05)
        """,
    ),
    _serves("unfinished_reply", "a reply that is never finished", "write(b'{\"id\": 0,')\ntime.sleep(3600)"),
    _serves("no_reply", "no reply", "time.sleep(3600)"),
    _begins("never_ready", "says nothing at all", "time.sleep(3600)"),
    _begins("never_reads", "announces itself, then never reads its arguments", _READY + "time.sleep(3600)", _LARGE),
    _begins(
        "full_channel",
        "writes without reading until both ends would block",
        _READY + "write(b' ' * (3 << 20))\ntime.sleep(3600)",
        _LARGE,
        _FLOOD,
    ),
    _serves(
        "half_closed",
        "shuts its side of the channel, then loops",
        """
        import socket
        socket.socket(fileno=4).shutdown(socket.SHUT_WR)
        while True:
            pass
        """,
        outcomes=_LATE | {Outcome.FORBIDDEN},
    ),
    _serves(
        "closed_and_stays",
        "closes all descriptors and stays",
        """
        os.closerange(0, 64)
        while True:
            pass
        """,
    ),
    _serves(
        "stopped_in_call",
        "stops itself",
        "import signal\nsignal.raise_signal(signal.SIGSTOP)\nreturn 0",
        outcomes=_LATE | {Outcome.FORBIDDEN},
    ),
    _serves(
        "slow_for_a_tester",
        "never replies to a tester, which waits",
        "time.sleep(3600)",
        judged_by(
            TesterStyle.HUMANEVAL,
            """
            def check(candidate):
                assert candidate(1) == 1
            """,
            entry_point="solve",
        ),
    ),
)

FLOODS = (
    _begins("endless_announcements", "announces itself for ever", f"while True:\n    {_READY}", outcomes=_FLOOD),
    _serves(
        "output_while_called",
        "floods standard output while a call is open",
        "while True:\n    os.write(1, b'x' * 65536)",
        outcomes=_FLOOD,
    ),
    _serves(
        "flood_for_a_tester",
        "floods a tester with lines",
        "while True:\n    write(b'{}\\n' * 1000)",
        judged_by(TesterStyle.ASSERTS, "", "assert solve(1) == 1"),
        _FLOOD,
    ),
    _storms(
        "denied_storm",
        "system calls that are denied, without an end",
        """
        import os
        while True:
            try:
                os.kill(1, 0)
            except OSError:
                pass
        """,
        frozenset({Outcome.FORBIDDEN, Outcome.CPU}),
    ),
    _storms(
        "denied_storm_of_threads",
        "denied calls from many threads at once",
        """
        import os, threading
        def storm():
            while True:
                try:
                    os.fork()
                except OSError:
                    pass
        for _ in range(8):
            threading.Thread(target=storm).start()
        """,
        _TIME | {Outcome.FORBIDDEN},
    ),
    _storms(
        "many_small_writes",
        "a system call for each byte of output",
        "import os\nwhile True:\n    os.write(1, b'x')",
        _TIME | {Outcome.OUTPUT},
    ),
    _storms(
        "quiet_errors",
        "many small writes to standard error",
        "import os\nwhile True:\n    os.write(2, b'x')",
        _TIME | {Outcome.OUTPUT},
    ),
)

PROGRAMS = (*WAITING, *FLOODS)
