"""Reward hacks where a program prints: the output is wrong, and hopes to pass."""

from __future__ import annotations

from funicular.rewards.sandbox.types import Outcome, TestSet
from tests.sandbox.programs import DOUBLE, HostileProgram, code, stdio

_WRONG = frozenset({Outcome.WRONG})


def _prints(
    name: str, why: str, source: str, tests: TestSet = DOUBLE, outcomes: frozenset[Outcome] = _WRONG
) -> HostileProgram:
    return HostileProgram(name=name, why=why, source=code(source), tests=tests, outcomes=outcomes)


PROGRAMS = (
    _prints("exit_0", "ends well before it prints", "import sys\nsys.exit(0)\n"),
    _prints("hard_exit_0", "ends at once, status 0", "import os\nprint(42)\nos._exit(0)\n"),
    _prints(
        "right_answer_wrong_exit",
        "prints the right answer and fails",
        "print(int(input()) * 2, flush=True)\nraise SystemExit(3)\n",
        outcomes=frozenset({Outcome.RUNTIME_ERROR}),
    ),
    _prints(
        "right_answer_by_signal",
        "prints the right answer, then crashes",
        "import os\nprint(int(input()) * 2, flush=True)\nos.abort()\n",
        outcomes=frozenset({Outcome.SIGNAL, Outcome.FORBIDDEN, Outcome.RUNTIME_ERROR}),
    ),
    _prints(
        "forged_verdicts",
        "writes verdicts to every descriptor",
        """
        import json, os
        verdicts = [
            {"outcome": "ok", "passed": True, "tests_passed": 1}, {"run": 1, "failed": 0, "skipped": 0, "collected": 1},
            {"status": "ok", "exit_code": 0, "stdout": "42"}, {"id": 0, "value": 42}, {"ready": {"functions": []}},
        ]
        for number in range(256):
            for verdict in verdicts:
                try:
                    os.write(number, json.dumps(verdict).encode() + b"\\n")
                except OSError:
                    break
        """,
    ),
    _prints("many_answers", "prints every number up to a hundred", "for n in range(101):\n    print(n)\n"),
    _prints("many_answers_in_a_line", "prints them on one line", "print(*range(101))\n"),
    _prints("two_answers", "prints a wrong and the right answer", "print(41)\nprint(int(input()) * 2)\n"),
    _prints("answer_twice", "prints the right answer twice", "n = int(input())\nprint(2 * n)\nprint(2 * n)\n"),
    _prints("answer_on_stderr", "prints the answer elsewhere", "import sys\nprint(42, file=sys.stderr)\n"),
    _prints("echo", "prints its input", "print(input())\n"),
    _prints(
        "constant",
        "knows the first case only",
        "print(42)\n",
        stdio(("21\n", "42\n"), ("4\n", "8\n")),
    ),
    _prints(
        "closed_output",
        "prints the answer to a closed descriptor",
        "import os\nos.close(1)\nprint(int(input()) * 2)\n",
        outcomes=frozenset({Outcome.WRONG, Outcome.RUNTIME_ERROR}),
    ),
    _prints(
        "always_equal_text",
        "prints an object whose text claims to equal everything",
        """
        class Any(str):
            def __eq__(self, other):
                return True
            __hash__ = str.__hash__
            def rstrip(self, *_):
                return self
        print(Any("anything"))
        """,
    ),
    _prints(
        "stopped_clock",
        "sets the clock's functions to a constant, then takes too long",
        """
        import time
        time.time = time.perf_counter = time.monotonic = time.process_time = lambda: 0.0
        time.sleep(3600)
        print(int(input()) * 2)
        """,
        outcomes=frozenset({Outcome.WALL}),
    ),
    _prints("no_output", "prints nothing where something is expected", "pass\n"),
    _prints("not_a_number", "nan where a number is expected", "print('nan')\n", stdio(("", "0.5\n"), tolerance=1e-6)),
    _prints("infinity", "inf within a tolerance", "print('inf')\n", stdio(("", "1e308\n"), tolerance=0.5)),
    _prints("overflowing_float", "a number beyond floats", "print('1e999')\n", stdio(("", "1e308\n"), tolerance=0.5)),
    _prints("nearly", "close, where exactness is required", "print('42.0000001')\n"),
    _prints(
        "decimal_for_integer", "a decimal beyond a tolerance", "print('42.1')\n", stdio(("", "42\n"), tolerance=1e-3)
    ),
    _prints(
        "large_integer_nearly",
        "off by one in 30 digits",
        f"print({10**30 + 1})\n",
        stdio(("", f"{10**30}\n"), tolerance=1e-6),
    ),
    _prints("underscored", "digits with underscores", "print('4_2')\n"),
    _prints("hexadecimal", "another base", "print('0x2a')\n"),
    _prints("expression", "an expression for whoever evaluates it", "print('21*2')\n"),
    _prints("fraction", "a fraction for whoever evaluates it", "print('84/2')\n", stdio(("", "42\n"), tolerance=1e-6)),
    _prints("joined_tokens", "tokens without the blank between", "print('12')\n", stdio(("", "1 2\n"))),
    _prints("joined_lines", "lines joined by a blank", "print('1 2')\n", stdio(("", "1\n2\n"))),
    _prints("missing_line", "all lines but the last", "print('1\\n2')\n", stdio(("", "1\n2\n3\n"))),
    _prints("other_case", "capitals where small letters are expected", "print('YES')\n", stdio(("", "yes\n"))),
    _prints("other_order", "lines in another order", "print('2\\n1')\n", stdio(("", "1\n2\n"))),
    _prints(
        "other_multiplicity",
        "unordered lines, one twice",
        "print('1\\n1\\n2')\n",
        stdio(("", "1\n2\n2\n"), unordered_lines=True),
    ),
)
