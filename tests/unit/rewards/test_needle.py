"""Needles, words and regular expressions in texts."""

from typing import Any

import pytest

from funicular.rewards.needle import needle, needle_found, needles_of
from funicular.rewards.pattern import regex, regex_match
from funicular.rewards.types import Task
from funicular.rewards.words import contains, word_count

HAYSTACK = "The grass is green. The magic number of Oslo is 50418. " + "The sky is blue. " * 200


def task(answer: str | None) -> Task:
    return Task(task_id="t", prompt="p", answer=answer, verifier="needle")


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("It is 42.", "42"),
        ("-42", "42"),
        ("(New\n  York)", "new york"),
        ("C++ rocks", "c++"),
        ("答案是苹果。", "苹果"),
        ("서울에서", "서울"),
        ("naïve", "NAÏVE"),
        ("a $5 bill", "$5"),
        ("He said: 'no'.", "no"),
    ],
)
def test_whole_words_are_found(text: str, phrase: str) -> None:
    assert contains(text, phrase)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("party", "art"),
        ("142", "42"),
        ("42.5", "42"),
        ("1,42", "42"),
        ("42,000", "42"),
        ("42nd", "42"),
        ("новый", "нов"),
    ],
)
def test_parts_of_words_and_numbers_are_not(text: str, phrase: str) -> None:
    assert not contains(text, phrase)


def test_case_counts_on_request() -> None:
    assert not contains("paris", "Paris", ignore_case=False)


def test_text_without_spaces_is_not_one_word() -> None:
    assert word_count("two words") == 2
    assert word_count("字" * 800) == 100


def test_every_needle_must_be_found() -> None:
    both = '["50418", "77120"]'
    assert needle(task("50418"), "The magic number of Oslo is 50418.").correct
    assert needle(task(both), "50418 and 77120").correct
    assert not needle(task(both), "50418").correct
    assert needle(task(both), "50418").details["extracted"] == "50418"


def test_dumping_the_haystack_does_not_find_the_needle() -> None:
    assert not needle(task("50418"), HAYSTACK).correct
    assert not needle(task("50418"), HAYSTACK.replace(" ", "")).correct
    assert needle(task("50418"), HAYSTACK, max_words=10_000).correct
    assert needle_found([HAYSTACK], ["50418"]) == [0.0]


def test_dumping_numbers_does_not_find_the_needle_either() -> None:
    assert not needle(task("50418"), " ".join(map(str, range(50_000, 51_000)))).correct
    assert not needle(task("50418"), ",".join(map(str, range(50_000, 51_000)))).correct


def test_needle_can_be_told_where_to_look() -> None:
    text = f"<think>{HAYSTACK}</think><answer>50418</answer>"
    assert needle(task("50418"), text, tag="answer").correct


def test_needle_found_gives_the_share_and_skips_tasks_without_needles() -> None:
    answers = ['["50418", "77120"]', '["50418", "77120"]', "oslo", None]
    assert needle_found(["50418", "50418, 77120", "In OSLO.", "x"], answers) == [0.5, 1.0, 1.0, None]


def test_a_needle_may_begin_with_a_bracket() -> None:
    assert needles_of("[sic] it is") == ["[sic] it is"]


@pytest.mark.parametrize("answer", ["[]", "[1]", '["a", " "]', "[null]"])
def test_a_list_that_names_no_needles_is_an_error(answer: str) -> None:
    with pytest.raises(ValueError, match="JSON list of texts"):
        needle(task(answer), "")


def test_a_limit_below_one_word_is_an_error() -> None:
    for call in (lambda: needle(task("a"), "", max_words=0), lambda: needle_found([], [], max_words=0)):
        with pytest.raises(ValueError, match="max_words=0"):
            call()


def test_regex_takes_the_reference_or_an_option_as_its_pattern() -> None:
    assert regex(task("[0-9]{4}"), "in 1999").correct
    assert regex(task(None), "in 1999", pattern="[0-9]{4}").correct
    assert regex(task("a.b"), "Answer: a.b", pattern="Answer: {answer}$").correct
    assert not regex(task("a.b"), "Answer: axb", pattern="Answer: {answer}$").correct, "the answer is taken literally"
    assert not regex(task("[0-9]{4}"), "in 1999", full=True).correct
    assert regex(task("[0-9]{4}"), " 1999\n", full=True).correct


@pytest.mark.parametrize("pattern", ["(", "a*", "^", ""])
def test_regex_refuses_patterns_that_are_none_or_match_nothing(pattern: str) -> None:
    with pytest.raises(ValueError, match="regex"):
        regex(task("x"), "", pattern=pattern)


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"pattern": "[0-9]+"}, [1.0, 1.0, 0.0]),
        ({"pattern": "[0-9]+", "full": True}, [1.0, 0.0, 0.0]),
        ({"pattern": "[0-9]+", "count": 2}, [0.0, 1.0, 0.0]),
        ({"pattern": "[0-9]+", "count": 0}, [0.0, 0.0, 1.0]),
        ({"pattern": "(?i)NONE"}, [0.0, 0.0, 1.0]),
    ],
)
def test_regex_match_searches_matches_fully_or_counts(options: dict[str, Any], values: list[float]) -> None:
    assert regex_match([" 12 ", "1 and 2", "none"], **options) == values


@pytest.mark.parametrize(
    "options", [{"pattern": "("}, {"pattern": "a", "count": -1}, {"pattern": "a", "full": True, "count": 1}]
)
def test_regex_match_refuses_impossible_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="regex_match"):
        regex_match([], **options)
