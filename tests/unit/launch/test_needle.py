"""The needle set: where needles stand, what is asked, and that the seed decides everything."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest

from funicular.launch.config import DataConfig
from funicular.launch.needle import needle_rows
from funicular.launch.tasks import load_tasks


def rows(**changes: Any) -> list[dict[str, Any]]:
    keys: dict[str, Any] = {"words": 150, "depths": "0,0.5,1", "count": 1, "distractors": 0, "size": 30, "seed": 0}
    return needle_rows(**(keys | changes))


def sentences(row: dict[str, Any]) -> list[str]:
    haystack, _, _ = row["prompt"].rpartition("\n\n")
    return re.findall(r"[^.]+\.", haystack)


def question(row: dict[str, Any]) -> str:
    return row["prompt"].rpartition("\n\n")[2]


def test_the_seed_decides_every_row() -> None:
    assert rows() == rows()
    assert rows() != rows(seed=1)
    assert rows(size=10) == rows(size=30)[:10]
    assert len({row["prompt"] for row in rows(size=300)}) == 300


@pytest.mark.parametrize("words", [40, 400, 3000])
def test_a_haystack_is_as_long_as_asked_up_to_a_sentence(words: int) -> None:
    for row in rows(words=words, distractors=1, size=5):
        counted = len(row["prompt"].rpartition("\n\n")[0].split())
        assert row["words"] == counted
        assert words <= counted < words + 15


def test_the_needle_stands_at_its_depth_and_nowhere_else() -> None:
    for row in rows(words=600, distractors=3):
        said = sentences(row)
        (place,) = [i for i, sentence in enumerate(said) if row["answer"] in sentence]
        assert place / (len(said) - 1) == pytest.approx(row["depth"], abs=0.12)
        assert row["prompt"].count(row["answer"]) == 1


def test_depth_0_is_the_first_sentence_and_depth_1_the_last() -> None:
    first, _, last = rows(size=3)
    assert first["answer"] in sentences(first)[0]
    assert last["answer"] in sentences(last)[-1]


def test_depths_take_turns() -> None:
    assert Counter(row["depth"] for row in rows()) == {0.0: 10, 0.5: 10, 1.0: 10}


def test_the_question_names_the_city_of_the_needle_and_no_distractor() -> None:
    for row in rows(distractors=2):
        needles = dict(re.findall(r"magic number of (\w+) is (\d+)", row["prompt"]))
        assert len(needles) == 3
        (city,) = [name for name, number in needles.items() if number == row["answer"]]
        assert question(row) == f"What is the magic number of {city}?"
        assert re.findall(r"\d+", "".join(sentences(row))) == list(needles.values()), "the haystack has no other number"


def test_several_needles_are_asked_for_in_the_order_of_the_answer() -> None:
    for row in rows(count=3, distractors=1):
        needles = dict(re.findall(r"magic number of (\w+) is (\d+)", row["prompt"]))
        asked = re.findall(r"[A-Z]\w+", question(row).removeprefix("What"))
        assert json.loads(row["answer"]) == row["needles"] == [needles[city] for city in asked]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": "0,half"}, r"data.needle_depths=0,half: expected numbers"),
        ({"depths": "0,1.5"}, r"from 0 \(begin\) to 1"),
        ({"depths": "0.5,0.5"}, "different numbers"),
        ({"words": 30, "count": 4}, r"data.needle_words: .*at least 56"),
        ({"words": 9000, "count": 80}, "data.needle_count: expected at most"),
    ],
)
def test_wrong_values_name_their_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows(**changes)


@pytest.mark.parametrize("words", [40, 200])
def test_the_set_loses_nothing_to_contamination_and_its_answers_fit_its_verifier(words: int) -> None:
    config = DataConfig(path="needle", size=1000, needle_words=words, needle_count=2, held_out_fraction=0.2)
    tasks = load_tasks(config, "needle", 0)
    assert tasks.report.contaminated == ()
    assert len(tasks.train) + len(tasks.held_out) == 1000
    iterator = tasks.iterator(seed=0)
    assert set(Counter(iterator.next().columns["depth"] for _ in range(50)).values()) == {10}
