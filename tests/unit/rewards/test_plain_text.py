"""Texts compared as text, and the tags in them."""

from typing import Any

import pytest

from funicular.rewards.plain_text import exact_text, normalise, normalised_text
from funicular.rewards.tags import format_tags, last_tagged
from funicular.rewards.types import Task


def task(answer: str) -> Task:
    return Task(task_id="t", prompt="p", answer=answer, verifier="exact_text")


def test_exact_text_ignores_white_space_around_and_nothing_else() -> None:
    assert exact_text(task("Paris "), "\n Paris\n").correct
    for text in ("paris", "Paris.", "Pa ris", "Paris Paris", "The answer is Paris"):
        assert not exact_text(task("Paris"), text).correct


def test_normalised_text_ignores_case_articles_punctuation_and_spacing() -> None:
    for text in (
        "the eiffel tower.",
        "EIFFEL  TOWER",
        "An 'Eiffel' Tower!",
        "“Eiffel tower”".replace("“", "").replace("”", ""),
    ):
        assert normalised_text(task("The Eiffel Tower"), text).correct
    for text in ("Eiffel", "Eiffel towers", "not the Eiffel Tower"):
        assert not normalised_text(task("The Eiffel Tower"), text).correct


@pytest.mark.parametrize(
    ("one", "other"), [("-5", "5"), ("1.5", "15"), ("−5", "5"), ("$-5", "$5"), ("-.5", ".5"), ("another", "other")]
)
def test_normalising_keeps_what_changes_the_answer(one: str, other: str) -> None:
    """SQuAD's own normalisation makes the numbers equal."""
    assert normalise(one) != normalise(other)


def test_normalising_joins_what_only_looks_different() -> None:
    assert normalise("1,000.") == normalise("1000")
    assert normalise("U.S.A.") == normalise("USA")
    assert normalise("STRASSE") == normalise("Straße")
    assert normalise("well-known") == normalise("wellknown")


@pytest.mark.parametrize("answer", ["the", "...", "A!"])
def test_a_reference_of_which_nothing_is_left_is_an_error(answer: str) -> None:
    with pytest.raises(ValueError, match="use exact_text"):
        normalised_text(task(answer), "")


def test_only_the_last_tagged_part_is_read() -> None:
    text = "<answer>London</answer> no, <answer>\nParis </answer> it is"
    assert exact_text(task("Paris"), text, tag="answer").correct
    assert not exact_text(task("London"), text, tag="answer").correct
    assert not exact_text(task("Paris"), "Paris", tag="answer").correct
    assert not exact_text(task("Paris"), "<answer>Paris", tag="answer").correct


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("<a>1</a>", "1"),
        ("<a>1<a>2</a>", "2"),
        ("<a>1</a><a>2", "1"),
        ("</a>1<a>", None),
        ("<a>1", None),
        ("1</a>", None),
        ("<A>1</A>", None),
    ],
)
def test_the_last_tagged_part_ends_at_the_last_closing_tag(text: str, inside: str | None) -> None:
    assert last_tagged(text, "a") == inside


def test_a_tag_is_named_without_brackets() -> None:
    with pytest.raises(ValueError, match="without brackets"):
        exact_text(task("1"), "", tag="<answer>")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>a\nb</think> <answer>1</answer>\n", 1.0),
        ("<answer>1</answer>", 0.0),
        ("x <think>a</think><answer>1</answer>", 0.0),
        ("<think>a</think><answer>1</answer> x", 0.0),
        ("<think>a</think> so <answer>1</answer>", 0.0),
        ("<think></think><answer>1</answer>", 0.0),
        ("<think>a</think><answer> </answer>", 0.0),
        ("<answer>1</answer><think>a</think>", 0.0),
        ("<think>a<answer>1</answer></think>", 0.0),
        ("<think>a</think><answer>1</answer><answer>2</answer>", 0.0),
        ("<think>a <answer>2</answer> b</think><answer>1</answer>", 0.0),
        ("<think>a</think><answer>1", 0.0),
    ],
)
def test_format_tags_wants_each_block_once_in_order_and_nothing_else(text: str, value: float) -> None:
    assert format_tags([text]) == [value]


def test_format_tags_allows_text_around_where_it_is_not_strict() -> None:
    text = "Well. <think>a</think> So <answer>1</answer>."
    assert format_tags([text], strict=False) == [1.0]
    assert format_tags(["<answer>1</answer> <think>a</think>"], strict=False) == [0.0]


def test_format_tags_takes_other_tags_and_prompts_that_open_the_first() -> None:
    assert format_tags(["<plan>a</plan><code>b</code>"], tags=["plan", "code"]) == [1.0]
    assert format_tags(["a</think><answer>1</answer>"], opened=True) == [1.0]
    assert format_tags(["<think>a</think><answer>1</answer>"], opened=True) == [0.0]


@pytest.mark.parametrize("tags", [[], "think", ["a", "a"], ["<think>"], [1]])
def test_format_tags_refuses_tags_that_are_no_names(tags: Any) -> None:
    with pytest.raises(ValueError, match="tag"):
        format_tags([], tags=tags)
