"""The verifier `code`: which text is the program, what is asked of the judge, and what is made of its verdict."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pytest

from funicular.rewards.code import CodeOptions, check_tests, extract_program, verify_code
from funicular.rewards.code_text import complete
from funicular.rewards.sandbox import types
from funicular.rewards.sandbox.types import (
    CallTests,
    Integrity,
    Judgement,
    Level,
    Outcome,
    Program,
    Signals,
    StdioTests,
)
from funicular.rewards.types import Status, Task


class FakeJudge:
    """Answers with the same outcome for every program, and keeps what it was asked."""

    def __init__(self, outcome: Outcome = Outcome.OK, **judgement: Any) -> None:
        self.asked: list[tuple[Sequence[Program], types.TestSet]] = []
        counts = {"tests_passed": 0, "tests_run": 1, "tests_total": 2, "level": Level.L3}
        self.judgement = Judgement(outcome=outcome, **(counts | judgement))

    def __call__(self, programs: Sequence[Program], tests: types.TestSet) -> list[Judgement]:
        self.asked.append((programs, tests))
        return [self.judgement] * len(programs)

    @property
    def sources(self) -> list[str]:
        return [program.source for programs, _ in self.asked for program in programs]


def task(tests: Any = None, task_id: str = "t", **columns: Any) -> Task:
    tests = [["1", "2"]] if tests is None else tests
    return Task(task_id=task_id, prompt="", answer=None, verifier="code", columns={"tests": tests, **columns})


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\nprint(1)\n```", "print(1)"),
        ("So:\n```python\nx = 1\n```\nbetter:\n```python\ny = 2\n```\nDone.", "y = 2"),
        ("```python\nx\n```\nprints\n```\n12\n```", "x"),
        ("```python\nx\n```\nRun it:\n```bash\npython x.py\n```", "x"),
        ("```\nx\n```\n```text\n12\n```", "x"),
        ("```py3\nx\n```", "x"),
        ("```Python\nx\n```", "x"),
        ("```python title=a\nx\n```", "x"),
        ("``` python\nx\n```", "x"),
        ("~~~python\nx = '''\n```\n'''\n~~~", "x = '''\n```\n'''"),
        ("````python\n```\n````", "```"),
        ("```python\r\nx\r\ny\r\n```\r\n", "x\ny"),
        ("1. First\n   ```python\n   def f():\n       return 1\n   ```", "def f():\n    return 1"),
        ("```python\ndef f():\n    return", "def f():\n    return"),
        ("```python\nx\n```\nand\n```python\n", "x"),
        ("print(1)\n", "print(1)\n"),
        ("    return x\n", "    return x\n"),
        ("<think>```python\nwrong\n```</think>\n```python\nright\n```", "right"),
        ("<think>hm</think>print(1)", "print(1)"),
        ("", ""),
        (" \n\t\n", ""),
        ("```python\n```", ""),
        ("```python\n  \n```\ntext", ""),
        ("```cpp\nint main() {}\n```", "int main() {}"),
    ],
)
def test_the_program_is_cut_out_of_the_text(text: str, program: str) -> None:
    assert extract_program(text) == program


def test_another_language_takes_its_own_block() -> None:
    text = "```cpp\nint main() {}\n```\n```python\nx\n```"
    assert extract_program(text, "cpp") == "int main() {}"
    assert extract_program(text, "javascript") == "x"


def test_text_made_to_be_slow_to_cut_is_cut() -> None:
    for part in ("```\n", "`", "```python", " ", "~~~\n```\n", "</think>", "```python\nx\n"):
        extract_program(part * 200_000)
    for one_line in ("~" * 200_000 + "`", "```" + " " * 200_000 + "`", "```" + "a" * 200_000 + "`"):
        extract_program(one_line)  # quadratic work would take hours


PROMPT = "from typing import List\n\ndef helper():\n    return 1\n\ndef f(x: List[int]):\n    '''Do.'''\n"


@pytest.mark.parametrize(
    ("source", "whole"),
    [
        ("    return x\n", f"{PROMPT}    return x\n"),
        ("return x", f"{PROMPT}    return x"),
        ("y = x\n    return y", f"{PROMPT}    y = x\n    return y"),
        ("if x:\n    return 1\nreturn 2", f"{PROMPT}    if x:\n        return 1\n    return 2"),
        ("if x:\n        return 1\n    return 2", f"{PROMPT}    if x:\n        return 1\n    return 2"),
        ("def f(x):\n    return x", f"{PROMPT.partition('def f')[0]}\ndef f(x):\n    return x"),
        ("f = lambda x: x", f"{PROMPT.partition('def f')[0]}\nf = lambda x: x"),
        (
            "class Solution:\n    def f(self, x): 0",
            f"{PROMPT.partition('def f')[0]}\nclass Solution:\n    def f(self, x): 0",
        ),
        ("from __future__ import annotations\ndef f(x): 0", "from __future__ import annotations\ndef f(x): 0"),
        (
            "    def f(x):\n        return x\n    return f(x)",
            f"{PROMPT}    def f(x):\n        return x\n    return f(x)",
        ),
        ("    return f == x", f"{PROMPT}    return f == x"),
    ],
)
def test_a_body_gets_its_prompt_and_a_whole_function_what_stood_before_it(source: str, whole: str) -> None:
    assert complete(source, PROMPT, "f") == whole
    compile(whole, "whole", "exec")


def test_the_judge_gets_all_programs_of_a_group_at_once() -> None:
    judge = FakeJudge()
    found = verify_code(task(), ["```python\na\n```", "", "b", "```\n```"], judge, language="python")
    ((programs, tests),) = judge.asked
    assert [program.source for program in programs] == ["a", "b"]
    assert isinstance(tests, StdioTests)
    assert [one.correct for one in found] == [True, False, True, False]
    assert [one.details["outcome"] for one in found] == ["ok", "no program", "ok", "no program"]
    assert found[1].status is Status.FAILED
    assert (found[1].details["tests_passed"], found[1].details["tests_total"]) == ("0", "1")


def test_no_program_at_all_asks_no_judge() -> None:
    judge = FakeJudge()
    assert [one.correct for one in verify_code(task(), ["", " "], judge)] == [False, False]
    assert judge.asked == []


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Outcome.OK, Status.PASSED),
        (Outcome.WRONG, Status.FAILED),
        (Outcome.RUNTIME_ERROR, Status.FAILED),
        (Outcome.CPU, Status.TIMEOUT),
        (Outcome.WALL, Status.TIMEOUT),
        (Outcome.MEMORY, Status.FAILED),
        (Outcome.OUTPUT, Status.FAILED),
        (Outcome.SIGNAL, Status.FAILED),
        (Outcome.FORBIDDEN, Status.FAILED),
        (Outcome.PROTOCOL, Status.FAILED),
        (Outcome.COMPILE_ERROR, Status.FAILED),
        (Outcome.INFRA_ERROR, Status.INFRA_ERROR),
    ],
)
def test_every_outcome_has_its_status(outcome: Outcome, status: Status) -> None:
    (found,) = verify_code(task(), ["x"], FakeJudge(outcome))
    assert found.status is status
    assert found.correct is (outcome is Outcome.OK)
    assert found.details["outcome"] == outcome.value


def test_details_say_what_the_sandbox_measured_and_saw() -> None:
    signals = Signals(denied={"socket": 2, "fork": 1}, protocol_violations=3, canary_read=True)
    judge = FakeJudge(
        Outcome.WRONG, signals=signals, cpu_s=0.25, detail="test 2 of 2: x", tests_passed=1, integrity=Integrity.WEAK
    )
    (found,) = verify_code(task(), ["x"], judge)
    assert found.details == {
        "outcome": "wrong",
        "tests_passed": "1",
        "tests_total": "2",
        "level": "L3",
        "integrity": "weak",
        "cpu_s": "0.250",
        "detail": "test 2 of 2: x",
        "denied": "fork:1,socket:2",
        "protocol_violations": "3",
        "canary_read": "true",
    }
    (quiet,) = verify_code(task(), ["x"], FakeJudge())
    assert not {"denied", "protocol_violations", "canary_read"} & quiet.details.keys()


def test_columns_beside_the_tests_are_used() -> None:
    check = "def check(candidate):\n    assert candidate(1) == helper()\n"
    row = task(check, entry_point="f", prompt=PROMPT)
    judge = FakeJudge()
    verify_code(row, ["    return 1\n", "```python\ndef f(x):\n    return 1\n```"], judge, prefix_column="prompt")
    ((_, tests),) = judge.asked
    assert isinstance(tests, types.TesterTests)
    assert (tests.entry_point, tests.prelude) == ("f", PROMPT)
    assert judge.sources[0] == f"{PROMPT}    return 1\n"
    assert judge.sources[1].startswith("from typing import List")

    verify_code(task(["assert f(1)"], test_setup_code="import math"), ["x"], judge)
    tests = judge.asked[-1][1]
    assert isinstance(tests, types.TesterTests)
    assert tests.source == "import math"

    functional = [{"input": "1", "output": "2", "testtype": "functional"}]
    verify_code(task(functional, metadata='{"func_name": "g"}'), ["x"], judge)
    tests = judge.asked[-1][1]
    assert isinstance(tests, CallTests)
    assert tests.function == "g"


def test_options_reach_the_tests() -> None:
    judge = FakeJudge()
    row = Task(task_id="t", prompt="", answer=None, verifier="code", columns={"cases": [["1", "2"]]})
    verify_code(
        row, ["x"], judge, tests_column="cases", tolerance=0.5, ignore_case=True, unordered_lines=True, language="bash"
    )
    ((programs, tests),) = judge.asked
    assert isinstance(tests, StdioTests)
    assert programs[0].language == "bash"
    assert tests.comparison == types.Comparison(tolerance=0.5, ignore_case=True, unordered_lines=True)


def test_a_prelude_stands_before_every_program() -> None:
    judge = FakeJudge()
    texts = ["print(1)", "", "from __future__ import annotations"]
    verify_code(task(), texts, judge, prelude="from typing import List")
    assert judge.sources == ["from typing import List\nprint(1)", "from __future__ import annotations"]


def test_tests_of_one_task_are_parsed_once_and_never_taken_for_another() -> None:
    judge = FakeJudge()
    one, again, other = task([["1", "2"]]), task([["1", "2"]]), task([["1", "3"]])
    for row in (one, again, other, one):
        verify_code(row, ["x"], judge)
    verify_code(one, ["x"], judge, tolerance=0.5)
    sets = [tests for _, tests in judge.asked]
    assert sets[0] is sets[1]
    assert sets[2] != sets[0]
    assert sets[3] == sets[0]
    assert sets[4] != sets[0]


@pytest.mark.parametrize(
    ("tests", "options", "said"),
    [
        (5, {}, "column tests: got int 5"),
        ([["1", "2"]], {"tests_column": "test"}, "no column 'test'; nearest: tests"),
        ([["1", "2"]], {"prefix_column": "prompt"}, "no column 'prompt'"),
        ({"inputs": [[1]], "outputs": [1], "fn_name": "f"}, {"language": "cpp"}, "standard input and output"),
        (["assert f(1)"], {"language": "bash"}, "standard input and output"),
        ({"inputs": [[10**5000]], "outputs": [1], "fn_name": "f"}, {}, "arguments of test 1"),
    ],
)
def test_tests_that_cannot_be_judged_are_found_before_a_run(tests: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^task t: .*{re.escape(said)}"):
        check_tests(task(tests), **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "apss"}, "format='apss': nearest: apps"),
        ({"language": "c++"}, "language='c++': expected one of bash, cpp, javascript, python"),
        ({"tolerance": "abc"}, "tolerance='abc': expected a number, 0 or more"),
        ({"tolerance": float("nan")}, "tolerance=nan: expected a number"),
    ],
)
def test_an_option_that_could_never_be_used_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        check_tests(task(), **options)


def test_tests_that_can_be_judged_pass_the_check() -> None:
    check_tests(task())
    check_tests(task(["assert f(1)"]), same_process=True)
    check_tests(task({"inputs": [[1]], "outputs": [1], "fn_name": "f"}), tolerance=0.1)


def test_the_options_are_those_of_the_verifier() -> None:
    """`verify_code` spells them out, for the checks of recipes and for its readers."""
    keywords = [p for p in inspect.signature(verify_code).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert {p.name: p.default for p in keywords} == {f.name: f.default for f in fields(CodeOptions)}
