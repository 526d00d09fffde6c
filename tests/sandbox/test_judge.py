"""The judge: programs that solve their task pass, and nothing that they do instead does. Real slots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from funicular.rewards.sandbox import judge as judge_module
from funicular.rewards.sandbox.formats import parse_tests
from funicular.rewards.sandbox.judge import check_judgeable, run_program
from funicular.rewards.sandbox.slot_process import missing_tool
from funicular.rewards.sandbox.types import (
    CallTests,
    Integrity,
    Judgement,
    Level,
    Limits,
    Outcome,
    Program,
    StdioCase,
    StdioTests,
)
from tests.judge_slots import BRIEF, OUT_OF_TIME, QUICK, Slots, started_slots

SUM = parse_tests([["1 2\n", "3"], ["20 22\n", "42"], ["0 0", "0\n"]])
SQUARE = parse_tests({"fn_name": "square", "inputs": [[2], [3], [10]], "outputs": [4, 9, 100]})


@pytest.fixture(scope="module")
def slots() -> Iterator[Slots]:
    yield from started_slots()


@pytest.fixture(autouse=True)
def _next_submission_is_unharmed(slots: Slots) -> Iterator[None]:
    yield
    assert slots.judge("print(sum(map(int, input().split())))", SUM).passed


def outcomes(judgement: Judgement) -> list[Outcome]:
    return [case.outcome for case in judgement.cases]


def test_a_program_that_solves_all_cases_passes(slots: Slots) -> None:
    judgement = slots.judge("print(sum(map(int, input().split())))", SUM)
    assert (judgement.outcome, judgement.tests_passed, judgement.tests_run, judgement.tests_total) == ("ok", 3, 3, 3)
    assert judgement.passed
    assert (judgement.level, judgement.integrity, judgement.detail) == (slots.level, Integrity.STRONG, "")
    assert judgement.cpu_s > 0
    assert judgement.peak_rss_mib > 0
    assert judgement.stdout == "42\n"


def test_the_first_failure_ends_it_unless_all_tests_are_wanted(slots: Slots) -> None:
    printing_three = "print(3)"
    first = slots.judge(printing_three, SUM)
    assert (first.outcome, first.tests_run, first.tests_passed) == ("wrong", 1, 0)
    every = slots.judge(printing_three, SUM, all_tests=True)
    assert outcomes(every) == [Outcome.OK, Outcome.WRONG, Outcome.WRONG]
    assert (every.outcome, every.tests_run, every.tests_passed) == ("wrong", 3, 1)
    assert every.detail == "test 2 of 3: expected '42', got '3'"


def test_short_tests_run_first_and_results_keep_their_order(slots: Slots) -> None:
    tests = parse_tests([["1" * 1000, "1"], ["2", "2"], ["3" * 10, "x"]])
    judgement = slots.judge("print(input()[0])", tests)
    assert outcomes(judgement) == [Outcome.OK, Outcome.WRONG]  # the long one was not run
    assert judgement.detail.startswith("test 3 of 3")


@pytest.mark.parametrize(
    ("source", "outcome"),
    [
        ("print(sum(map(int, input().split())) + 1)", Outcome.WRONG),
        ("", Outcome.WRONG),
        ("raise SystemExit(0)", Outcome.WRONG),
        ("print(sum(map(int, input().split()))); raise SystemExit(1)", Outcome.RUNTIME_ERROR),
        ("print(sum(map(int, input().split()))); 1 / 0", Outcome.RUNTIME_ERROR),
        ("print(sum(map(int, input().split()))); import os; os.abort()", Outcome.SIGNAL),
        ("print(sum(map(int, input().split())), flush=True)\nwhile True: pass", Outcome.CPU),
        ("print(sum(map(int, input().split())), flush=True)\nimport time; time.sleep(60)", Outcome.WALL),
        ("x = bytearray(4 << 30)", Outcome.MEMORY),
        ("print('x' * (2 << 20))", Outcome.OUTPUT),
        ("import socket; socket.socket()", Outcome.FORBIDDEN),
        ("this is no Python", Outcome.RUNTIME_ERROR),
        ("print('\\ud800')", Outcome.RUNTIME_ERROR),
        ("import sys; sys.stdout.buffer.write(b'\\xff3')", Outcome.WRONG),
        ("import sys; sys.stdout.buffer.write('３'.encode())", Outcome.WRONG),
        ("import sys; print(3 if '1 2' in sys.stdin.read() else 3)", Outcome.WRONG),
        ("print(1 + 2, 20 + 22, 0, sep='\\n')", Outcome.WRONG),
    ],
)
def test_a_program_that_does_not_solve_its_task_fails_for_its_own_reason(
    slots: Slots, source: str, outcome: Outcome
) -> None:
    judgement = slots.judge(source, SUM, limits=BRIEF)
    assert judgement.outcome is outcome or {judgement.outcome, outcome} == OUT_OF_TIME
    assert not judgement.passed
    assert judgement.detail.startswith("test ")


def test_the_detail_is_one_printable_line(slots: Slots) -> None:
    judgement = slots.judge("print('\\x1b[31m' + 'x' * 5000 + '\\u202e')", SUM)
    assert len(judgement.detail) < 400
    assert judgement.detail.isprintable()
    assert "\x1b" not in judgement.stdout
    assert len(judgement.stdout) < 5000


def test_a_lone_surrogate_in_a_source_is_the_programs_fault(slots: Slots) -> None:
    assert slots.judge("print('\ud800')", SUM).outcome is Outcome.RUNTIME_ERROR


def test_a_source_beyond_all_measure_never_reaches_a_slot(slots: Slots) -> None:
    judgement = slots.judge("#" * (judge_module.MAX_SOURCE_BYTES + 1), SUM)
    assert (judgement.outcome, judgement.tests_run) == (Outcome.COMPILE_ERROR, 0)


def test_denied_calls_are_counted_over_all_jobs_whatever_the_verdict(slots: Slots) -> None:
    source = "import socket\ntry: socket.socket()\nexcept OSError: pass\nprint(sum(map(int, input().split())))"
    judgement = slots.judge(source, SUM)
    assert judgement.passed
    if judgement.signals.denied:  # where the kernel can notify
        assert judgement.signals.denied == {"socket": 3}


def test_reading_the_canary_is_seen(slots: Slots) -> None:
    reading = "import glob\nfor p in ('/tests/*', '../tests/*'):\n    for f in glob.glob(p): print(open(f).read())\n"
    judgement = slots.judge(reading, SUM)
    assert judgement.signals.canary_read
    assert not judgement.passed
    assert not slots.judge("print(3)", SUM).signals.canary_read


SLEEPING = "import time; time.sleep(1.2)\n"


def test_a_program_that_the_submissions_deadline_cuts_is_our_fault(slots: Slots) -> None:
    late = slots.judge("print(3)", SUM, seconds=0.0)
    assert (late.outcome, late.tests_run) == (Outcome.INFRA_ERROR, 0)
    right = f"{SLEEPING}print(sum(map(int, input().split())))"
    slow = slots.judge(right, SUM, seconds=2.2, limits=Limits(cpu_s=0.1))  # its jobs took longer than one may
    assert slow.outcome is Outcome.INFRA_ERROR
    assert 0 < slow.tests_run < 3


def test_a_test_that_failed_before_the_submissions_deadline_decides(slots: Slots) -> None:
    wrong = slots.judge(f"{SLEEPING}print(7)", SUM, seconds=0.5, all_tests=True)
    assert (wrong.outcome, wrong.tests_run) == (Outcome.WRONG, 1)
    hanging = slots.judge("import time; time.sleep(60)", SUM, seconds=0.5, all_tests=True, limits=BRIEF)
    assert (hanging.outcome, hanging.tests_run) == (Outcome.WALL, 1)


@pytest.mark.parametrize(
    ("tests", "language", "options", "said"),
    [
        (SUM, "ruby", {}, "expected one of bash, cpp, javascript, python"),
        (SUM, "pyton", {}, "nearest: python"),
        (SQUARE, "cpp", {}, "only tests of standard input and output"),
        (parse_tests(["assert f(1)"]), "bash", {}, "only tests of standard input and output"),
        (SUM, "bash", {"level": Level.L1}, "needs level L3"),
        (StdioTests(cases=()), "python", {}, "a task without tests"),
        (CallTests(function="f", cases=()), "python", {}, "a task without tests"),
        (parse_tests(["assert f(1)"], same_process=True), "python", {}, "sandbox.allow_weak_integrity"),
    ],
)
def test_what_cannot_be_judged_is_refused(tests: Any, language: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_judgeable(tests, language, **options)


def test_the_judge_itself_refuses_weak_tests_and_arguments_that_cannot_cross(slots: Slots) -> None:
    with pytest.raises(ValueError, match="allow_weak_integrity"):
        slots.judge("x", parse_tests(["assert f(1)"], same_process=True))
    with pytest.raises(ValueError, match="a task without tests"):
        slots.judge("x", CallTests(function="f", cases=()))
    with pytest.raises(ValueError, match="cannot be given"):
        check_judgeable(parse_tests({"fn_name": "f", "inputs": [[10**5000]], "outputs": [1]}))


def test_a_program_can_be_run_without_tests(slots: Slots) -> None:
    report = run_program(slots, Program(source="print(input()[::-1])"), b"abc", QUICK)
    assert (report.outcome, report.stdout) == (Outcome.OK, b"cba\n")


NATIVE = {
    "bash": ("read a b; echo $((a + b))", "echo 3", "exit 1", Outcome.RUNTIME_ERROR),
    "cpp": (
        "#include <iostream>\nint main() { long a, b; std::cin >> a >> b; std::cout << a + b; }",
        '#include <cstdio>\nint main() { puts("3"); }',
        "int main() { return x; }",
        Outcome.COMPILE_ERROR,
    ),
    "javascript": (
        "const [a, b] = require('fs').readFileSync(0, 'utf8').split(' ').map(Number); console.log(a + b)",
        "console.log(3)",
        "throw new Error('x')",
        Outcome.RUNTIME_ERROR,
    ),
}


@pytest.mark.parametrize("language", NATIVE)
def test_other_languages_run_at_l3(slots: Slots, language: str) -> None:
    if slots.level is not Level.L3:
        pytest.skip("other languages need L3")
    if missing := missing_tool(language):
        pytest.skip(missing)
    right, wrong, broken, outcome = NATIVE[language]
    judgement = slots.judge(right, SUM, language=language, limits=Limits(cpu_s=2.0))
    assert judgement.passed, (judgement.detail, judgement.stderr)
    assert slots.judge(wrong, SUM, language=language, limits=Limits(cpu_s=2.0)).outcome is Outcome.WRONG
    failed = slots.judge(broken, SUM, language=language, limits=Limits(cpu_s=2.0))
    assert failed.outcome is outcome
    if outcome is Outcome.COMPILE_ERROR:
        assert failed.tests_run == 0
        assert "x" in failed.stderr


def test_a_program_that_dawdles_in_every_test_fails_before_the_deadline_makes_it_void(slots: Slots) -> None:
    tests = StdioTests(cases=(StdioCase(stdin="", stdout="1"),) * 9)
    limits = Limits(cpu_s=1.0, submission_s=0.5)
    judgement = slots.judge("import time\ntime.sleep(0.3)\nprint(1)", tests, limits=limits)
    assert (judgement.outcome, judgement.tests_run) == (Outcome.WALL, 2), judgement.detail


def test_a_program_may_put_its_own_object_in_the_place_of_standard_output(slots: Slots) -> None:
    source = """
import os, sys
class Fast:
    def __init__(self): self.text = []
    def write(self, text): self.text.append(text)
    def flush(self): os.write(1, "".join(self.text).encode()); self.text.clear()
sys.stdout = Fast()
print(2 * int(input()))
"""
    judgement = slots.judge(source, StdioTests(cases=(StdioCase(stdin="21", stdout="42"),)))
    assert judgement.outcome is Outcome.OK, judgement.detail
