import re
from collections import Counter

import pytest

from funicular.launch.arithmetic import KINDS, arithmetic_rows
from funicular.launch.config import DataConfig
from funicular.launch.contamination import WORDS_IN_A_ROW
from funicular.launch.tasks import load_tasks

ALL = ",".join(KINDS)


def test_the_set_is_the_same_for_the_same_seed_and_has_no_repeats() -> None:
    rows = arithmetic_rows(ALL, 3000, 7)
    assert rows == arithmetic_rows(ALL, 3000, 7)
    assert rows != arithmetic_rows(ALL, 3000, 8)
    assert len({row["prompt"] for row in rows}) == len(rows) == 3000


def test_kinds_are_balanced_until_the_small_ones_run_out() -> None:
    assert set(Counter(row["kind"] for row in arithmetic_rows(ALL, 70, 0)).values()) == {10}
    counts = Counter(row["kind"] for row in arithmetic_rows("add1,mul1,sub2", 1000, 0))
    assert counts == {"add1": 64, "mul1": 64, "sub2": 872}
    assert len(arithmetic_rows("add1", 1000, 0)) == 64


@pytest.mark.parametrize("kind", list(KINDS))
def test_answers_are_right_and_templates_share_no_13_words(kind: str) -> None:
    operations = {
        "add1": lambda a, b: a + b,
        "add2": lambda a, b: a + b,
        "mul1": lambda a, b: a * b,
        "sub2": lambda a, b: a - b,
        "max3": max,
    }
    for row in arithmetic_rows(kind, 500, 0):
        prompt, numbers = row["prompt"], [int(n) for n in re.findall(r"\d+", row["prompt"])]
        if kind in operations:
            expected = operations[kind](*numbers)
        else:
            sign = -1 if "loses" in prompt else 1
            expected = sum(numbers[:-1]) + sign * numbers[-1]
        assert row["answer"] == str(expected), prompt
        assert row["level"] == KINDS[kind][0]
        words = re.findall(r"\w+", prompt)
        for start in range(len(words) - WORDS_IN_A_ROW + 1):
            window = words[start : start + WORDS_IN_A_ROW]
            assert set(map(str, numbers)) <= set(window), "this prompt would share 13 words by template"


def test_the_embedded_set_loses_nothing_to_contamination() -> None:
    tasks = load_tasks(DataConfig(kinds=ALL, size=4000), "exact_number", 0)
    assert tasks.report.contaminated == ()
    assert len(tasks.train) + len(tasks.held_out) == 4000
    assert {task.columns["kind"] for task in tasks.held_out} == set(KINDS)


def test_the_embedded_sets_kinds_take_turns() -> None:
    iterator = load_tasks(DataConfig(), "exact_number", 0).iterator(seed=0)
    assert set(Counter(iterator.next().columns["kind"] for _ in range(80)).values()) == {20}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kinds": "add1,add3"}, r"no kind 'add3'; nearest: add2"),
        ({"kinds": "add1,add1"}, "twice"),
        ({"kinds": ""}, "data.kinds"),
        ({"size": 0}, "data.size=0"),
        ({"held_out_path": "arithmetic"}, "data.held_out_path: a set made by rule"),
        ({"held_out_fraction": 1.0}, "data.held_out_fraction=1.0"),
    ],
)
def test_wrong_keys_for_the_embedded_set_are_errors(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_tasks(DataConfig(**keys), "exact_number", 0)  # type: ignore[arg-type]
