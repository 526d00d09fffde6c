"""Jobs that run after each hostile one: they must pass, and see a place that nobody used before."""

from __future__ import annotations

from funicular.rewards.sandbox.types import Level, Program, TesterStyle, TesterTests, TestSet
from tests.sandbox.programs import PEER_SECRET, HostileProgram, judged_by, stdio

_MUCH = f"# {PEER_SECRET}\n" * 1000
"""Long, so that what a slot keeps of it is not all overwritten by a shorter job."""
_PLAIN = f"""{_MUCH}
import builtins, gc, os, signal, sys, threading
import json, math, random
assert os.listdir(".") == [], os.listdir(".")
with open("mine", "w") as f:
    f.write("x")
assert open("mine").read() == "x"
assert not [name for name in os.environ if "FUNICULAR" in name], os.environ
assert threading.active_count() == 1
assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
assert (builtins.len([1, 2]), builtins.type(7), 7 + 0, math.sqrt(9), json.loads("[1]")) == (2, int, 7, 3.0, [1])
assert sum(range(10)) == 45 and sorted("ba") == ["a", "b"] and str(7) == "7"
assert "funicular_left" not in sys.modules and None not in sys.meta_path
threads = [threading.Thread(target=lambda: None) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(int(input()) * 2)
print({PEER_SECRET!r} * 1000, file=sys.stderr)
"""
_PLAIN_TESTS = stdio(("21\n" + _MUCH, "42\n"))

_CODE = judged_by(
    TesterStyle.UNITTEST,
    """
    import unittest
    from solution import solve
    class TestSolve(unittest.TestCase):
        def test_sum(self):
            self.assertEqual(solve(20, 22), 42)
    """,
)


def checks_after(program: HostileProgram, level: Level) -> list[tuple[Program, TestSet]]:
    """What must pass on the lane where `program` just ran: always a plain job, and one like its own."""
    found: list[tuple[Program, TestSet]] = [(Program(source=_PLAIN), _PLAIN_TESTS)]
    if isinstance(program.tests, TesterTests):
        found.append((Program(source="def solve(a, b):\n    return a + b\n"), _CODE))
    if program.language != "python" and level is Level.L3:
        source = """
            read n
            [ -z "$(ls -A)" ] || exit 1
            echo x > mine
            echo $((n * 2))
            """
        found.append((Program(source=source, language="bash"), stdio(("21\n", "42\n"))))
    return found


def warm_up(level: Level) -> list[tuple[Program, TestSet]]:
    """One job for each role, so that every slot that will be needed has been started."""
    found: list[tuple[Program, TestSet]] = [(Program(source=_PLAIN), _PLAIN_TESTS)]
    found.append((Program(source="def solve(a, b):\n    return a + b\n"), _CODE))
    if level is Level.L3:
        found.append((Program(source="echo 42\n", language="bash"), stdio(("21\n", "42\n"))))
    return found
