from decimal import Decimal

import pytest

from funicular.rewards.types import Task
from funicular.rewards.verifiers import VERIFIERS, as_number, check_answer, check_verifier, last_number


def task(answer: str | None) -> Task:
    return Task(task_id="t", prompt="p", answer=answer, verifier="exact_number")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 25.", "25"),
        ("1,234,567 people", "1234567"),
        ("first 3 then 4", "4"),
        ("-7", "-7"),
        ("it is −7", "-7"),
        ("(-7)", "-7"),
        ("12-5", "5"),
        ("x-5", "5"),
        ("3.50 dollars", "3.50"),
        ("$.5", ".5"),
        ("$-5.", "-5"),
        ("1,2,3", "3"),
        ("1,0000", "0"),
        ("\\boxed{42}", "42"),
        ("1,000.25!", "1000.25"),
    ],
)
def test_the_last_number_is_found(text: str, number: str) -> None:
    assert last_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "none here", "twenty-five", "٣"])
def test_a_text_without_ascii_digits_has_no_number(text: str) -> None:
    assert last_number(text) is None


def test_as_number_wants_the_whole_text() -> None:
    assert as_number(" $1,000. ") == 1000
    assert as_number("5 apples") is None
    assert as_number("1/2") is None


def test_exact_number_compares_as_numbers() -> None:
    assert VERIFIERS["exact_number"](task("25"), "so 25.0").correct
    assert VERIFIERS["exact_number"](task("1,000"), "1000").correct
    assert not VERIFIERS["exact_number"](task("25"), "25 or 26").correct
    assert VERIFIERS["exact_number"](task("25"), "no idea").details == {"extracted": "nothing"}


@pytest.mark.parametrize("name", ["exact_number", "gsm8k"])
@pytest.mark.parametrize("answer", ["a cat", "", None, "#### none"])
def test_a_reference_that_is_no_number_is_an_error(name: str, answer: str | None) -> None:
    with pytest.raises(ValueError, match=name):
        VERIFIERS[name](task(answer), "5")
    with pytest.raises(ValueError, match=name):
        check_answer(name, answer)


def test_gsm8k_wants_the_number_after_the_last_mark() -> None:
    verify = VERIFIERS["gsm8k"]
    assert verify(task("72"), "48 + 24\n#### 72").correct
    assert verify(task("solution <<1+1=2>>\n#### 1,072"), "#### $1072.").correct
    assert verify(task("72"), "#### 71\n#### 72").correct
    assert not verify(task("72"), "72").correct, "without the mark it is not correct"
    assert not verify(task("72"), "72 ####").correct
    assert not verify(task("72"), "#### 7 or 72").correct


def test_math_finds_equivalent_expressions() -> None:
    verify = VERIFIERS["math"]
    assert verify(task("\\frac{1}{2}"), "so it is $0.5$").correct
    assert verify(task("$x^2+2x+1$"), "thus $(x+1)^2$").correct
    assert not verify(task("\\frac{1}{2}"), "$\\frac{1}{3}$").correct
    assert not verify(task("2"), "I do not know").correct


def test_math_refuses_a_reference_that_it_cannot_parse() -> None:
    with pytest.raises(ValueError, match="cannot parse"):
        VERIFIERS["math"](task("???"), "$2$")


def test_an_unknown_verifier_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="nearest: exact_number"):
        check_verifier("exact_nummber")
