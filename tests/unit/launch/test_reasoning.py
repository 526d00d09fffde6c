"""Tasks of reasoning-gym: with the package where it is installed, and what is said where it is not."""

from __future__ import annotations

import sys

import pytest

from funicular.launch.reasoning import reasoning_rows
from funicular.rewards.reasoning_gym import reasoning_gym, reasoning_gym_score
from funicular.rewards.types import Task


@pytest.fixture
def _without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)


def task(row: dict[str, object]) -> Task:
    return Task(
        task_id="a",
        prompt="",
        answer=str(row["answer"]),
        verifier="reasoning_gym",
        columns={"entry": row["entry"]},
    )


ENTRY = {"question": "How many legs?", "answer": "8", "metadata": {"source_dataset": "leg_counting"}}


@pytest.mark.usefixtures("_without_package")
def test_a_missing_package_is_an_error_that_says_how_to_install_it() -> None:
    with pytest.raises(ValueError, match=r"reasoning-gym is not installed.*pip install 'funicular\[reasoning\]'"):
        reasoning_rows(None, 4, 0)


@pytest.mark.usefixtures("_without_package")
def test_a_task_can_be_checked_without_the_package() -> None:
    verification = reasoning_gym(task({"answer": "8", "entry": ENTRY}), "")
    assert (verification.correct, verification.details["score"]) == (False, "0.0")


def test_a_task_of_another_data_set_is_an_error() -> None:
    with pytest.raises(ValueError, match="no column entry"):
        reasoning_gym(Task(task_id="a", prompt="", answer="8", verifier="reasoning_gym"), "8")


def test_the_graded_function_needs_the_verifiers_score() -> None:
    assert reasoning_gym_score([{"score": "0.25"}, {"score": "1.0000"}]) == [0.25, 1.0]
    with pytest.raises(ValueError, match=r"reward\.verifier=reasoning_gym"):
        reasoning_gym_score([{"extracted": "8"}])


def test_what_the_verifier_did_not_answer_for_in_time_scores_zero() -> None:
    late = {"verifier": "no answer in 5 s of CPU time"}
    assert reasoning_gym_score([late, {"score": "1.0"}, late]) == [0.0, 1.0, 0.0]
    assert reasoning_gym_score([late]) == [0.0]


def test_the_packages_own_tasks_and_scores() -> None:
    pytest.importorskip("reasoning_gym", reason="the extra `reasoning` is not installed")
    rows = reasoning_rows("leg_counting,chain_sum", 5, 7)
    assert rows == reasoning_rows("leg_counting,chain_sum", 5, 7) != reasoning_rows("leg_counting,chain_sum", 5, 8)
    assert [row["kind"] for row in rows] == ["leg_counting", "chain_sum", "leg_counting", "chain_sum", "leg_counting"]
    for row in rows:
        assert reasoning_gym(task(row), f"so <answer>{row['answer']}</answer>").correct
        assert not reasoning_gym(task(row), f"so {row['answer']}").correct, "no tag"
        assert reasoning_gym(task(row), f" {row['answer']} ", tag=None).correct
        assert not reasoning_gym(task(row), "<answer>-1</answer>").correct
    with pytest.raises(ValueError, match="nearest: leg_counting"):
        reasoning_rows("leg_count", 5, 7)
    with pytest.raises(ValueError, match="twice"):
        reasoning_rows("chain_sum,chain_sum", 5, 7)
