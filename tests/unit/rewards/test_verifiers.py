"""What holds for every verifier, and the table of them."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from funicular.rewards.types import Task
from funicular.rewards.verifiers import VERIFIERS, check_task, check_verifier, prepare

PLAIN = sorted(set(VERIFIERS) - {"reasoning_gym"})
"""Verifiers that need nothing but a reference answer."""
PIECES = (
    "1", "1,", "-", "a", "A\n", "A or ", "\\boxed{", "{", "}", "$", "\\(", "\\[", "```\n", "`", "<answer>", "</answer>",
    "the correct answer is: option ", "\n", " ", "((", "[", '{"a":', '"', "#### 1\n", "1e9", "× 10^{", "答", "\\text{",
    "é", "1 ,2", "*", "x = ", "1+1", "\\,", "~", "the ", "\x00", "\ud800",
)  # fmt: skip


@dataclass(frozen=True)
class Example:
    reference: str
    passes: str
    fails: str


EXAMPLES = {
    "exact_number": Example("25", "so 25.0", "25 or 26"),
    "number": Example("1500", "about 1.5e3", "about 1501"),
    "gsm8k": Example("solution\n#### 72", "48 + 24\n#### 72", "72"),
    "math": Example("\\frac{1}{2}", "thus $0.5$", "thus $0.6$"),
    "boxed": Example("\\frac{1}{2}", "\\boxed{0.5}", "0.5"),
    "exact_text": Example("Paris", " Paris\n", "paris"),
    "normalised_text": Example("The Hague", "hague.", "Amsterdam"),
    "choice": Example("C", "The answer is (C).", "The answer is (C) or (D)."),
    "json": Example('{"a": 1}', '```json\n{"a": 1.0}\n```', '{"a": "1"}'),
    "regex": Example("[0-9]{4}", "in 1999", "in 199"),
    "needle": Example("50418", "It is 50418.", "It is 150418."),
}


def task(verifier: str, answer: str | None, columns: Mapping[str, Any] | None = None) -> Task:
    return Task(task_id="t", prompt="p", answer=answer, verifier=verifier, columns=columns or {})


@pytest.mark.parametrize("name", PLAIN)
def test_every_verifier_tells_right_from_wrong(name: str) -> None:
    example = EXAMPLES[name]
    assert VERIFIERS[name](task(name, example.reference), example.passes).correct
    assert not VERIFIERS[name](task(name, example.reference), example.fails).correct


@pytest.mark.parametrize("name", PLAIN)
def test_an_empty_text_is_never_correct(name: str) -> None:
    for text in ("", " \n\t", "\x00"):
        assert not VERIFIERS[name](task(name, EXAMPLES[name].reference), text).correct


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("answer", [None, "", " \n"])
def test_a_missing_reference_is_an_error_that_names_the_verifier(name: str, answer: str | None) -> None:
    with pytest.raises(ValueError, match=rf"{name}.*data.answer_column"):
        check_task(task(name, answer))


@pytest.mark.parametrize("name", PLAIN)
def test_what_the_verifier_took_for_the_answer_is_shown_and_cut(name: str) -> None:
    details = VERIFIERS[name](task(name, EXAMPLES[name].reference), EXAMPLES[name].passes + "\n" + "x" * 10_000).details
    assert details["extracted"]
    assert all(len(value) <= 300 for value in details.values())


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", sorted(set(PLAIN) - {"math", "boxed"}))
def test_no_text_makes_a_verifier_hang_or_raise(name: str) -> None:
    """Of 30,000 characters each; an expression that backtracks would take hours. Those of math are the caller's."""
    for piece in PIECES:
        for end in ("", "\n#### ", "\\boxed{", "!"):
            text = (piece * 30_000)[:30_000] + end
            VERIFIERS[name](task(name, EXAMPLES[name].reference), text)


def test_an_unknown_verifier_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="nearest: exact_number"):
        check_verifier("exact_nummber")


def test_code_is_a_verifier_though_the_child_never_runs_it() -> None:
    check_verifier("code")
    assert "code" not in VERIFIERS


def test_a_tasks_check_reads_options_and_columns() -> None:
    check_task(task("regex", None), {"pattern": "[0-9]+"})
    check_task(task("choice", "Paris", {"choices": ["London", "Paris"]}), {"choices_column": "choices"})
    with pytest.raises(ValueError, match="abs_tolerance=-1"):
        check_task(task("number", "5"), {"abs_tolerance": -1})
    with pytest.raises(ValueError, match="no column 'options'; nearest: option"):
        check_task(task("choice", "A", {"option": ["x", "y"]}), {"choices_column": "options"})


def test_checking_references_loads_neither_sympy_nor_jsonschema() -> None:
    """10,000 tasks are checked in the driver; the slow imports belong to the scorer."""
    program = (
        "import sys; from funicular.rewards import functions, types, verifiers\n"
        "for name in ('math', 'boxed', 'json'):\n"
        "    verifiers.check_task(types.Task(task_id='t', prompt='p', answer='5', verifier=name))\n"
        "assert not {'sympy', 'math_verify', 'jsonschema', 'openai'} & set(sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, env=environment)


def test_preparing_a_verifier_that_needs_nothing_is_allowed() -> None:
    for name in ("exact_number", "choice", "code"):
        prepare(name)
