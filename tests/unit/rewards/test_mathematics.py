import pytest

from funicular.rewards.boxed import last_boxed
from funicular.rewards.equivalence import warm_up
from funicular.rewards.mathematics import boxed, math
from funicular.rewards.types import Task
from funicular.rewards.verifiers import check_task


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    warm_up()


def task(answer: str) -> Task:
    return Task(task_id="t", prompt="p", answer=answer, verifier="math")


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("\\frac{1}{2}", "so it is $0.5$"),
        ("$x^2+2x+1$", "thus $(x+1)^2$"),
        ("\\frac12", "\\boxed{\\dfrac{1}{2}}"),
        ("1,000", "\\boxed{1{,}000}"),
        ("1000", "\\boxed{1,000.0}"),
        ("(1,2)", "\\boxed{\\left( 1, 2 \\right)}"),
        ("2\\sqrt{3}", "$$\\sqrt{12}$$"),
        ("\\{1, 2\\}", "\\boxed{\\{2, 1\\}}"),
        ("300000000", "\\boxed{3 \\times 10^{8}}"),
        ("\\text{Tuesday}", "\\boxed{\\text{Tuesday}}"),
        ("5", "\\boxed{5 \\text{ m} \\cdot \\text{s}}"),
        ("5", "$2 + 3 = 5$"),
        ("5", "\\boxed{x = 5}"),
        ("1024", "\\boxed{2^{10}}"),
        ("They need 2 + 3 = <<2+3=5>>5\n#### 5", "#### 5"),
        ("so \\boxed{7}", "7"),
        ("72", "The answer is 72."),
        ("0.333333", "\\boxed{1/3}"),
    ],
)
def test_equivalent_final_expressions_are_correct(reference: str, text: str) -> None:
    assert math(task(reference), text).correct


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("5", "\\boxed{4, 5}"),
        ("5", "\\boxed{4 \\text{ or } 5}"),
        ("5", "$4$ and $5$"),
        ("5", "\\boxed{5 \\neq 4}"),
        ("5", "\\boxed{4 < 5}"),
        ("5", "\\boxed{5} no, \\boxed{6}"),
        ("5", "#### 5\n#### 6"),
        ("5", "\\boxed{-5}"),
        ("5", "\\boxed{}"),
        ("5", "I do not know"),
        ("\\frac{1}{2}", "$\\frac{1}{3}$"),
        ("1000000", "\\boxed{1000001}"),
        ("(1,2)", "\\boxed{(2,1)}"),
        ("[0,1)", "\\boxed{(0,1)}"),
    ],
)
def test_other_final_expressions_are_not(reference: str, text: str) -> None:
    assert not math(task(reference), text).correct


@pytest.mark.parametrize(
    "text", ["\\boxed{2+3}", "2+3", "\\boxed{x = 2+3}", "\\boxed{5 \\times 1}", "\\boxed{\\int_0^1 5 dx}"]
)
def test_repeating_the_question_is_not_answering_it(text: str) -> None:
    assert not math(task("5"), text).correct


def test_the_later_of_box_and_mark_counts() -> None:
    assert math(task("5"), "\\boxed{6}\n#### 5").correct
    assert math(task("5"), "#### Step 6\nSo it is \\boxed{5}.").correct
    assert not math(task("5"), "#### 5\nor rather \\boxed{6}").correct


def test_integers_and_equal_strings_never_reach_math_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("funicular.rewards.mathematics.read_expression", None)
    monkeypatch.setattr("funicular.rewards.mathematics.read_text", None)
    for claimed, correct in (("72", True), ("72.0", True), ("71", False), ("$72$.", True)):
        assert math(task("72"), f"\\boxed{{{claimed}}}").correct is correct
    assert math(task("e^{i \\pi}"), "\\boxed{ e^{i\\pi} }").correct


@pytest.mark.parametrize("claimed", ["(" * 400 + "5" + ")" * 400, "5+" * 5000 + "5", "{" * 60 + "5" + "}" * 60])
def test_expressions_that_only_cost_time_are_not_read(claimed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("funicular.rewards.mathematics.read_expression", None)
    verification = math(task("5"), f"\\boxed{{{claimed}}}")
    assert not verification.correct
    assert "too long or too deep" in verification.details["extracted"]


def test_math_refuses_a_reference_that_it_cannot_parse() -> None:
    with pytest.raises(ValueError, match="cannot parse"):
        math(task("???"), "$2$")


def test_boxed_wants_a_closed_box() -> None:
    assert boxed(task("\\frac{3}{4}"), "so \\boxed{0.75}").correct
    assert boxed(task("5"), "\\fbox{5}").correct
    assert not boxed(task("5"), "5").correct
    assert not boxed(task("5"), "#### 5").correct
    assert not boxed(task("5"), "\\boxed{5} and then \\boxed{5").correct
    assert not boxed(task("5"), "\\boxed{5} no \\boxed{6}").correct


def test_boxed_compares_as_text_on_request() -> None:
    assert boxed(task("The Hague"), "\\boxed{\\text{hague}}", compare="text").correct
    assert not boxed(task("1/2"), "\\boxed{0.5}", compare="text").correct
    with pytest.raises(ValueError, match="compare='tex'"):
        boxed(task("1"), "", compare="tex")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing is left"):
        boxed(task("the"), "", compare="text")


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\\boxed{1} \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\{1}", "\\{1"),
        ("\\boxed {7}", "7"),
        ("\\boxed{ \\boxed{7} }", "7"),
    ],
)
def test_the_last_box_is_found_with_balanced_braces(text: str, content: str) -> None:
    box = last_boxed(text)
    assert box is not None
    assert box.content == content
    assert text[box.start] == "\\"


@pytest.mark.parametrize("text", ["", "boxed{5}", "\\boxed5", "\\boxed{5", "\\boxed{1}\\boxed{\\}"])
def test_what_is_no_closed_box_is_none(text: str) -> None:
    assert last_boxed(text) is None


def test_checking_a_reference_does_not_parse_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("funicular.rewards.mathematics.equivalent", None)
    for verifier in ("math", "boxed"):
        check_task(Task(task_id="t", prompt="p", answer="\\frac{1}{2}", verifier=verifier))
