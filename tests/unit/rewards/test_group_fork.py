"""Verifier and built-in functions in one fork: what it saves, and that nothing of one is lost to another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from funicular.rewards.attribution import FailedError, TimedOutError
from funicular.rewards.forks import Ending, ForkLimits
from funicular.rewards.group_fork import parted, values
from funicular.rewards.reward_process import Reply
from funicular.rewards.runner import FunctionRunner
from funicular.rewards.types import Task
from tests.reward_runs import Make, rewards, score, statuses

SLOW = {"pattern": "^(a+)+$"}
"""Never ends on a row of a's with something behind it."""
HANGS = "a" * 40 + "!"
REGEX_TASK = Task(task_id="t", prompt="Q", answer=None, verifier="regex")
OK, RAISED = {"value": [1.0]}, {"raised": "KeyError"}


def reply(*answers: Mapping[str, Any], ending: Ending = Ending.DONE) -> Reply:
    return Reply(answers=answers, ending=ending, message="why")


def forks_of(runner: FunctionRunner, monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int, list[str]]]:
    """Of each fork of the offline process: whether it verifies, how many texts it gets, which functions."""
    seen: list[tuple[bool, int, list[str]]] = []
    call = runner._offline.call

    def seen_call(arguments: Mapping[str, Any], limits: ForkLimits) -> Reply:
        seen.append((arguments["found"] is None, len(arguments["texts"]), list(arguments["functions"])))
        return call(arguments, limits)

    monkeypatch.setattr(runner._offline, "call", seen_call)
    return seen


def test_a_group_costs_one_fork_and_one_more_for_each_function_of_a_users(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make({"correctness": 1.0, "user.py:score": 1.0, "length": 1.0}, options={"length": {"target": 2}})
    forks = forks_of(runner, monkeypatch)
    verdicts, raised = score(runner, ["5", "6"])
    assert rewards(verdicts) == [2.5, 2.0]
    assert forks == [(True, 2, ["correctness", "length"]), (False, 2, ["user.py:score"])]
    assert raised == {}


def test_functions_of_one_file_do_not_see_each_others_state(make: Make) -> None:
    runner = make({"one": 1.0, "two": 1.0}, uses=dict.fromkeys(("one", "two"), "user.py:calls_before"))
    assert rewards(score(runner, ["5"])[0]) == [0.0]


def test_a_text_that_hangs_the_verifier_takes_no_functions_result(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = make(
        {"correctness": 1.0, "choice_format": 0.0, "length": 1.0},
        limit=0.2,
        verifier="regex",
        verifier_options=SLOW,
        options={"length": {"target": 2}},
    )
    forks = forks_of(runner, monkeypatch)
    verdicts, raised = score(runner, ["a", HANGS, "b"], REGEX_TASK)
    assert statuses(verdicts) == ["passed", "timeout", "failed"]
    assert [v.breakdown["correctness"] for v in verdicts] == [1.0, 0.0, 0.0]
    assert [v.breakdown["length"] for v in verdicts] == [0.5, 1.0, 0.5]
    names = ["correctness", "choice_format", "length"]
    assert forks == [(True, 3, names), (True, 1, []), (False, 3, names)]
    assert raised == {}


def test_a_text_that_hangs_a_built_in_function_takes_nothing_else(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = make(
        {"correctness": 1.0, "regex_match": 1.0, "length": 1.0},
        limit=0.2,
        options={"regex_match": SLOW, "length": {"target": 2}},
    )
    forks = forks_of(runner, monkeypatch)
    verdicts, raised = score(runner, ["5", HANGS, "aaa"])
    assert statuses(verdicts) == ["passed", "timeout", "failed"]
    assert [v.breakdown["correctness"] for v in verdicts] == [1.0, 0.0, 0.0]
    assert [v.breakdown["regex_match"] for v in verdicts] == [0.0, 0.0, 1.0]
    assert [v.breakdown["length"] for v in verdicts] == [0.5, 1.0, 0.5]
    alone = [(False, 1, ["regex_match"])] * 3
    assert forks == [
        (True, 3, ["correctness", "regex_match", "length"]),
        (False, 3, ["length"]),
        *alone,
        (False, 2, ["regex_match"]),
    ]
    assert raised == {}


def test_a_verifier_that_raises_keeps_its_fork_from_asking_functions(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make({"correctness": 1.0})
    forks = forks_of(runner, monkeypatch)
    task = Task(task_id="t", prompt="Q", answer="a cat", verifier="exact_number")
    assert statuses(score(runner, ["5", "6"], task)[0]) == ["infra_error"] * 2
    assert forks == [(True, 2, ["correctness"]), (True, 2, [])]


def test_a_reply_is_parted_into_texts_and_functions() -> None:
    group = parted(reply(OK, RAISED, OK, RAISED), 2, ["f", "g"])
    assert (group.verifier.answers, group.verifier.ending) == ((OK, RAISED), Ending.DONE)
    assert {name: one.answers for name, one in group.functions.items() if one} == {"f": (OK,), "g": (RAISED,)}


def test_what_was_not_asked_is_left_out() -> None:
    assert parted(reply(RAISED, {}), 1, ["f"]).functions == {}
    assert parted(reply(OK, ending=Ending.CPU), 2, ["f"]).functions == {}


@pytest.mark.parametrize(("ending", "error"), [(Ending.CPU, TimedOutError), (Ending.DIED, FailedError)])
def test_the_function_under_way_when_the_fork_ended_is_to_blame(ending: Ending, error: type[Exception]) -> None:
    group = parted(reply(OK, OK, ending=ending), 1, ["f", "g", "h"])
    assert group.verifier.ending is Ending.DONE
    assert set(group.functions) == {"f", "g"}
    blamed = group.functions["g"]
    assert blamed is not None
    with pytest.raises(error, match="why"):
        values(blamed)


def test_nobody_is_to_blame_for_memory_that_others_may_have_used_up() -> None:
    group = parted(reply(OK, ending=Ending.MEMORY), 1, ["f", "g"])
    assert group.functions == {"f": None}


def test_a_fork_that_ended_in_a_text_is_blamed_on_that() -> None:
    group = parted(reply(OK, ending=Ending.MEMORY), 2, ["f"])
    assert (group.verifier.answers, group.verifier.ending, group.functions) == ((OK,), Ending.MEMORY, {})
