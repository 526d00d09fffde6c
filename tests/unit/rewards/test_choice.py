from typing import Any

import pytest

from funicular.rewards.choice import choice, choice_format, named_letters
from funicular.rewards.types import Task

CITIES = ["London", "Paris", "Rome", "Berlin"]


def task(answer: str, choices: Any = None) -> Task:
    columns = {} if choices is None else {"choices": choices}
    return Task(task_id="t", prompt="p", answer=answer, verifier="choice", columns=columns)


@pytest.mark.parametrize(
    "text",
    [
        "C",
        "c",
        "(C)",
        "**C**",
        "C.",
        "Let me think about A and B.\nC",
        "The answer is C.",
        "The answer is (C) because A is too small and B is too large.",
        "the correct answer is: **C**",
        "Answer: C",
        "**Answer:** c",
        "ANSWER - (C)",
        "Answer:\n\nC",
        "The correct option is option C",
        "My choice is C",
        "The answer to this question is C",
        "The answer is therefore C, A is wrong",
        "Final answer: \\(C\\)",
        "so \\boxed{C}",
        "\\boxed{\\text{(C)}}",
        "\\boxed{C. Paris}",
        "The answer is $\\boxed{C}$.",
        "A is wrong, B is wrong. (C) is the correct answer.",
        "Option C is correct",
        "The answer is A. No, wait: the answer is C.",
        "\\boxed{A}\nOn reflection, the answer is C",
        "The answer is not A. The answer is C",
        "The answer is C.\n\nA) is wrong since it is cold.",
        "The answer is C. I think so.",
        "The answer is C\n\nA good way to see it is to draw it.",
    ],
)
def test_the_letter_that_is_finally_named_counts(text: str) -> None:
    assert named_letters(text) == ["C"]


@pytest.mark.parametrize(
    "text",
    [
        "The answer is B or C",
        "The answer is (B) or (C)",
        "The answer is B, C",
        "The answer is A, B, C, D",
        "Answer: B/C",
        "Answer: A B C D",
        "\\boxed{B, C}",
        "\\boxed{(B)(C)}",
        "B\nC",
        "A\nB\nC\nD",
        "B, C",
        "B or C is correct",
        "The answer is C.\nThe answer is B or C.",
    ],
)
def test_naming_several_letters_names_none(text: str) -> None:
    assert len(named_letters(text)) > 1
    assert not choice(task("C"), text).correct
    assert choice_format([text]) == [0.0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I do not know",
        "Cats are nice",
        "The answer is a cat",
        "The answer is I think unclear",
        "The answer is C++",
        "The answer is D'Artagnan",
        "the answer is not C",
        "C is incorrect",
        "A triangle has three sides",
        "C) Paris or so I heard",
        "K",
    ],
)
def test_a_letter_in_passing_is_not_named(text: str) -> None:
    assert named_letters(text) == []


def test_the_last_statement_is_not_the_first() -> None:
    assert not choice(task("C"), "The answer is C.\nActually, the answer is D.").correct
    assert not choice(task("C"), "\\boxed{C}\nD").correct


def test_letters_limit_what_can_be_named() -> None:
    assert named_letters("The answer is E", "ABCD") == []
    assert choice(task("E"), "E", letters="ABCDE").correct
    with pytest.raises(ValueError, match="no letter of ABCD"):
        choice(task("E"), "", letters="ABCD")
    for letters in ("A", "abc", "AAB", "A,B"):
        with pytest.raises(ValueError, match="capital letters"):
            choice(task("A"), "", letters=letters)


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        ("The answer is Paris.", True),
        ("The answer is paris, the capital.", True),
        ("Paris", True),
        ("B. Paris", True),
        ("\\boxed{Paris}", True),
        ("The answer is London.", False),
        ("B. London", False),
        ("London\nParis", False),
        ("The answer is C", False),
        ("The answer is E", False),
        ("The answer is Parish", False),
    ],
)
def test_an_option_may_be_named_by_its_text(text: str, correct: bool) -> None:
    for reference in ("B", "Paris"):
        assert choice(task(reference, CITIES), text, choices_column="choices").correct is correct
    assert choice(task("B", {"text": CITIES, "label": list("ABCD")}), text, choices_column="choices").correct is correct


def test_references_may_be_numbers() -> None:
    assert choice(task("2"), "The answer is C", index_from=0).correct
    assert choice(task("2"), "The answer is B", index_from=1).correct
    with pytest.raises(ValueError, match="no number from 1"):
        choice(task("0"), "", index_from=1)
    with pytest.raises(ValueError, match="give choices_column for texts, or index_from for numbers"):
        choice(task("2"), "")


def test_choice_can_be_told_where_to_look() -> None:
    assert choice(task("C"), "<think>The answer is A</think><answer>C</answer>", tag="answer").correct
    assert not choice(task("C"), "The answer is C", tag="answer").correct


@pytest.mark.parametrize("choices", [None, [], "ABCD", list("ABCDEFGHIJK")])
def test_an_unusable_column_of_choices_is_an_error(choices: Any) -> None:
    with pytest.raises(ValueError, match="choices"):
        choice(task("A", choices), "", choices_column="choices")


def test_choice_format_pays_for_clarity_not_for_truth() -> None:
    assert choice_format(["The answer is A", "Answer: B", "no idea", "The answer is A or B"]) == [1.0, 1.0, 0.0, 0.0]
    assert choice_format(["E"], letters="ABCD") == [0.0]
