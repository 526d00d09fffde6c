from decimal import Decimal

import pytest

from funicular.rewards.numeric import as_number, exact_number, gsm8k, last_number, number
from funicular.rewards.types import Task
from funicular.rewards.verifiers import VERIFIERS, check_task


def task(answer: str) -> Task:
    return Task(task_id="t", prompt="p", answer=answer, verifier="number")


@pytest.mark.parametrize(
    ("text", "found"),
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
def test_the_last_number_is_found(text: str, found: str) -> None:
    assert last_number(text) == Decimal(found)


@pytest.mark.parametrize("text", ["", "none here", "twenty-five", "٣"])
def test_a_text_without_ascii_digits_has_no_number(text: str) -> None:
    assert last_number(text) is None


def test_as_number_wants_the_whole_text() -> None:
    assert as_number(" $1,000. ") == 1000
    assert as_number("5 apples") is None
    assert as_number("1/2") is None


def test_exact_number_compares_as_numbers() -> None:
    assert exact_number(task("25"), "so 25.0").correct
    assert exact_number(task("1,000"), "1000").correct
    assert not exact_number(task("25"), "25 or 26").correct
    assert not exact_number(task("0.1"), "0.1000000000000000055").correct
    assert exact_number(task("25"), "no idea").details == {"extracted": "nothing"}


@pytest.mark.parametrize("name", ["exact_number", "gsm8k", "number"])
@pytest.mark.parametrize("answer", ["a cat", "", None, "#### none", "1e5e5"])
def test_a_reference_that_is_no_number_is_an_error(name: str, answer: str | None) -> None:
    unusable = Task(task_id="t", prompt="p", answer=answer, verifier=name)
    with pytest.raises(ValueError, match=name):
        VERIFIERS[name](unusable, "5")
    with pytest.raises(ValueError, match=name):
        check_task(unusable)


@pytest.mark.parametrize(
    "text",
    [
        "299792458",
        "2.99792458e8",
        "2.99792458E+8 m/s",
        "2.99792458 × 10^8",
        "$2.99792458 \\times 10^{8}$",
        "299,792,458.",
    ],
)
def test_number_reads_scientific_notation(text: str) -> None:
    assert number(task("299792458"), text).correct
    assert number(task("2.99792458e8"), text).correct


def test_number_allows_the_larger_of_both_tolerances() -> None:
    assert number(task("100"), "101", rel_tolerance=0.01).correct
    assert not number(task("100"), "101.01", rel_tolerance=0.01).correct
    assert number(task("100"), "102", rel_tolerance=0.01, abs_tolerance=2).correct
    assert number(task("0"), "0.001", abs_tolerance=0.001).correct
    assert not number(task("0"), "0.001", rel_tolerance=0.5).correct
    assert not number(task("0.1"), "0.1001", rel_tolerance=0).correct
    assert number(task("-2e-3"), "so −0.002").correct


def test_number_does_not_take_the_exponent_for_the_answer() -> None:
    assert not number(task("8"), "1.5e8").correct
    assert not number(task("8"), "1.5 × 10^8").correct


@pytest.mark.parametrize("text", ["1e9999", "9" * 100_000, "1e99999999999999999999", "-1e9999", "1" + ",000" * 9999])
def test_absurd_numbers_are_wrong_and_no_error(text: str) -> None:
    assert not number(task("5"), text, abs_tolerance=1).correct
    assert not exact_number(task("5.5"), text).correct


@pytest.mark.parametrize("options", [{"abs_tolerance": -0.1}, {"rel_tolerance": float("nan")}, {"tag": "<answer>"}])
def test_number_refuses_impossible_options(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        number(task("5"), "5", **options)


def test_number_can_be_told_where_to_look() -> None:
    assert number(task("5"), "<answer>5</answer> and 6 more", tag="answer").correct
    assert not number(task("5"), "no tag, just 5", tag="answer").correct


def test_gsm8k_wants_the_number_after_the_last_mark() -> None:
    assert gsm8k(task("72"), "48 + 24\n#### 72").correct
    assert gsm8k(task("solution <<1+1=2>>\n#### 1,072"), "#### $1072.").correct
    assert gsm8k(task("72"), "#### 71\n#### 72").correct
    assert not gsm8k(task("72"), "72").correct, "without the mark it is not correct"
    assert not gsm8k(task("72"), "72 ####").correct
    assert not gsm8k(task("72"), "#### 7 or 72").correct
