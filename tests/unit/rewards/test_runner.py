"""What becomes of a group: sums, statuses, who is to blame, and what is void."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from funicular.rewards.config import RewardConfig
from funicular.rewards.runner import scoring_deadline_s
from funicular.rewards.sandbox.types import Judgement, Outcome, Program, TestSet
from funicular.rewards.types import Message, Status, Task
from tests.reward_runs import Make, rewards, score, statuses


def test_reward_is_the_weighted_sum_and_status_the_verifiers(make: Make) -> None:
    verdicts, raised = score(make({"correctness": 1.0, "user.py:score": 0.5}), ["5", "it is 6"])
    assert rewards(verdicts) == [1.5, 3.5]
    assert statuses(verdicts) == ["passed", "failed"]
    assert verdicts[1].breakdown == {"correctness": 0.0, "user.py:score": 7.0}
    assert verdicts[1].details == {"extracted": "6"}
    assert raised == {}


def test_functions_get_trl_columns_and_their_options(make: Make) -> None:
    task = Task(
        task_id="t",
        prompt=(Message(role="user", content="Q"),),
        answer="5",
        verifier="exact_number",
        columns={"level": 3},
    )
    runner = make({"user.py:columns": 1.0, "length": 1.0}, options={"length": {"target": 2}})
    verdicts, raised = score(runner, ["5", "6"], task)
    assert raised == {}
    assert rewards(verdicts) == [2.5, 3.0]


def test_only_the_text_that_hangs_times_out_and_scores_zero(make: Make) -> None:
    runner = make({"user.py:hang_on_loop": 1.0, "user.py:score": 0.1}, limit=0.2)
    verdicts, raised = score(runner, ["5", "loop 5", "6"])
    assert rewards(verdicts) == [1.1, pytest.approx(0.6), 1.1]
    assert statuses(verdicts) == ["passed", "timeout", "failed"]
    assert verdicts[1].breakdown["user.py:hang_on_loop"] == 0.0
    assert "0.2 s" in verdicts[1].details["user.py:hang_on_loop"]
    assert raised == {}, "a time-out is the completion's doing, not the function's error"


def test_the_others_of_a_group_are_still_evaluated_together(make: Make) -> None:
    verdicts, _ = score(make({"user.py:count_group": 1.0}, limit=0.2), ["5", "loop", "6"])
    assert rewards(verdicts) == [2.0, 0.0, 2.0]


def test_a_hanging_verifier_is_a_time_out_and_not_correct(make: Make) -> None:
    runner = make({"correctness": 1.0}, limit=0.5, verifier="math")
    task = Task(task_id="t", prompt="Q", answer="5", verifier="math")
    verdicts, raised = score(runner, ["$5$", "$9^{9^{9^{9^{9}}}}$"], task)
    assert statuses(verdicts) == ["passed", "timeout"]
    assert rewards(verdicts) == [1.0, 0.0]
    assert raised == {}


def test_of_a_verifier_only_the_text_that_hangs_times_out(make: Make) -> None:
    runner = make({"correctness": 1.0}, limit=0.2, verifier="regex", verifier_options={"pattern": "^(a+)+$"})
    task = Task(task_id="t", prompt="Q", answer=None, verifier="regex")
    verdicts, raised = score(runner, ["aaa", "a" * 40 + "!", "b", "a" * 41 + "!", "a"], task)
    assert statuses(verdicts) == ["passed", "timeout", "failed", "timeout", "passed"]
    assert rewards(verdicts) == [1.0, 0.0, 0.0, 0.0, 1.0]
    assert "no answer in 0.2 s of CPU time" in verdicts[1].details["verifier"]
    assert raised == {}


def test_a_text_that_crashes_the_process_is_void_and_the_others_are_not(make: Make) -> None:
    verdicts, raised = score(make({"user.py:crash_on_exit": 1.0, "correctness": 1.0}), ["5", "exit 5"])
    assert rewards(verdicts) == [2.0, None]
    assert statuses(verdicts) == ["passed", "infra_error"]
    assert "exit code 7" in raised["user.py:crash_on_exit"]


def test_the_completions_for_which_a_function_raises_are_void(make: Make) -> None:
    verdicts, raised = score(make({"correctness": 1.0, "user.py:raise_on_bad": 1.0}), ["5", "bad 5", "5"])
    assert rewards(verdicts) == [2.0, None, 2.0]
    assert statuses(verdicts)[1] == "infra_error"
    assert "KeyError: 'bad text' (user.py:" in raised["user.py:raise_on_bad"]


def test_sys_exit_in_a_function_is_an_error_like_any_other(make: Make) -> None:
    verdicts, raised = score(make({"user.py:quit_always": 1.0}), ["5", "6"])
    assert rewards(verdicts) == [None, None]
    assert "SystemExit" in raised["user.py:quit_always"]


def test_a_function_that_fails_only_on_the_whole_group_is_its_error_for_all(make: Make) -> None:
    verdicts, raised = score(make({"user.py:raise_together": 1.0}), ["5", "6"])
    assert statuses(verdicts) == ["infra_error", "infra_error"]
    assert "on none of them alone" in raised["user.py:raise_together"]


def test_a_raising_verifier_voids_the_group(make: Make) -> None:
    task = Task(task_id="t", prompt="Q", answer="a cat", verifier="exact_number")
    verdicts, raised = score(make({"correctness": 1.0}), ["5", "6"], task)
    assert rewards(verdicts) == [None, None]
    assert statuses(verdicts) == ["infra_error", "infra_error"]
    assert "not a number" in raised["verifier exact_number"]


def test_none_for_the_whole_group_leaves_the_function_out(make: Make) -> None:
    verdicts, _ = score(make({"correctness": 1.0, "user.py:none": 5.0}), ["5", "6"])
    assert rewards(verdicts) == [1.0, 0.0]
    assert verdicts[0].breakdown == {"correctness": 1.0, "user.py:none": None}


def test_none_for_some_voids_those(make: Make) -> None:
    verdicts, raised = score(make({"correctness": 1.0, "user.py:none_for_some": 1.0}), ["5", "skip 5"])
    assert rewards(verdicts) == [3.0, None]
    assert verdicts[1].status is Status.PASSED
    assert "None" in verdicts[1].details["user.py:none_for_some"]
    assert raised == {}


def test_none_from_every_function_is_no_reward(make: Make) -> None:
    verdicts, _ = score(make({"user.py:none": 1.0}), ["5", "6"])
    assert rewards(verdicts) == [None, None]
    assert statuses(verdicts) == ["passed", "failed"]


def test_nan_is_an_error_and_never_zero(make: Make) -> None:
    verdicts, raised = score(make({"user.py:nan": 1.0}), ["5", "nan"])
    assert rewards(verdicts) == [1.0, None]
    assert statuses(verdicts) == ["passed", "infra_error"]
    assert "finite" in raised["user.py:nan"]


@pytest.mark.parametrize(("name", "message"), [("words", "expected a number"), ("too_few", "1 values for 2")])
def test_a_return_value_of_the_wrong_shape_is_an_error(make: Make, name: str, message: str) -> None:
    verdicts, raised = score(make({f"user.py:{name}": 1.0}), ["5", "6"])
    assert rewards(verdicts) == [None, None]
    assert message in raised[f"user.py:{name}"]


def test_a_function_with_network_that_fails_is_not_asked_for_each_completion(make: Make, tmp_path: Path) -> None:
    name, marker = "user.py:count_calls_and_fail", tmp_path / "calls"
    verdicts, raised = score(make({name: 1.0}, options={name: {"marker": str(marker)}}, network=[name]), ["5", "6"])
    assert statuses(verdicts) == ["infra_error"] * 2
    assert "no endpoint" in raised[name]
    assert marker.read_text() == "2 2 "


def test_a_function_with_network_that_is_too_slow_voids_its_group(make: Make) -> None:
    name = "user.py:hang_on_loop"
    verdicts, raised = score(make({name: 1.0}, network=[name], network_time_limit_s=0.5), ["5", "loop"])
    assert rewards(verdicts) == [None, None]
    assert "0.5 s" in raised[name]


def test_an_exception_in_place_of_a_number_voids_that_completion(make: Make) -> None:
    verdicts, raised = score(make({"correctness": 1.0, "user.py:unscored": 1.0}), ["5", "bad 5"])
    assert rewards(verdicts) == [2.0, None]
    assert statuses(verdicts) == ["passed", "infra_error"]
    assert verdicts[1].details["user.py:unscored"] == raised["user.py:unscored"] == "RuntimeError: no score for it"


def test_one_function_may_stand_there_twice_with_options_of_its_own(make: Make) -> None:
    uses = dict.fromkeys(("greeting", "closing"), "user.py:contains")
    options = {"greeting": {"word": "Dear"}, "closing": {"word": "Yours"}}
    runner = make({"greeting": 1.0, "closing": 10.0}, uses=uses, options=options)
    assert rewards(score(runner, ["Dear you", "Yours, me", "Dear you. Yours, me"])[0]) == [2.0, 20.0, 22.0]


def test_a_closed_gate_takes_a_function_out_of_the_sum_and_not_out_of_the_breakdown(make: Make) -> None:
    runner = make(
        {"correctness": 1.0, "user.py:contains": 0.0, "user.py:score": 1.0},
        options={"user.py:contains": {"word": "so"}},
        gates={"correctness": "user.py:contains"},
    )
    verdicts, _ = score(runner, ["so 5", "5"])
    assert rewards(verdicts) == [5.0, 1.0]
    assert [v.breakdown["correctness"] for v in verdicts] == [1.0, 1.0]
    assert statuses(verdicts) == ["passed", "passed"]
    assert "correctness gate" not in verdicts[0].details
    assert "user.py:contains is not above 0" in verdicts[1].details["correctness gate"]


def test_a_gate_that_does_not_apply_is_open(make: Make) -> None:
    runner = make({"correctness": 1.0, "user.py:none": 0.0}, gates={"correctness": "user.py:none"})
    assert rewards(score(runner, ["5", "6"])[0]) == [1.0, 0.0]


def test_a_function_of_weight_0_alone_makes_no_reward(make: Make) -> None:
    verdicts, _ = score(make({"correctness": 0.0, "user.py:none": 1.0}), ["5", "6"])
    assert rewards(verdicts) == [None, None]
    assert verdicts[0].breakdown == {"correctness": 1.0, "user.py:none": None}


def test_functions_get_what_the_verifier_found(make: Make) -> None:
    assert rewards(score(make({"user.py:extracted": 1.0}), ["5", "it is 6"])[0]) == [5.0, 6.0]


def test_the_deadline_of_a_group_covers_every_function_failing_slowly() -> None:
    config = RewardConfig(functions={"correctness": 1.0, "length": 1.0}, time_limit_s=2.0)
    assert scoring_deadline_s(config, 8) >= 3 * 2.0 * 8 * 4


CODE_TASK = Task(
    task_id="t",
    prompt="Q",
    answer=None,
    verifier="code",
    columns={"tests": {"inputs": ["1\n"], "outputs": ["2\n"]}},
)


class FakeJudge:
    """Judges by a word in the program; the sandbox itself is tested elsewhere."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, programs: Sequence[Program], tests: TestSet) -> list[Judgement]:
        self.asked.append([program.source for program in programs])
        return [self._judgement(program.source) for program in programs]

    def _judgement(self, source: str) -> Judgement:
        outcome = next((o for o in Outcome if f"# {o}" in source), Outcome.WRONG)
        passed = int(outcome is Outcome.OK)
        return Judgement(outcome=outcome, tests_passed=passed, tests_run=1, tests_total=1, detail=f"it was {outcome}")


def program(word: str) -> str:
    return f"```python\nprint(2)  # {word}\n```"


def test_code_is_judged_by_the_sandbox_and_functions_get_what_it_found(make: Make) -> None:
    judge = FakeJudge()
    runner = make({"correctness": 1.0, "test_fraction": 0.5}, judge=judge, verifier="code")
    verdicts, raised = score(runner, [program("ok"), program("wrong"), program("cpu")], CODE_TASK)
    assert rewards(verdicts) == [1.5, 0.0, 0.0]
    assert statuses(verdicts) == ["passed", "failed", "timeout"]
    assert [v.details["outcome"] for v in verdicts] == ["ok", "wrong", "cpu"]
    assert (len(judge.asked), raised) == (1, {})


def test_what_the_sandbox_could_not_judge_is_void_and_seen_by_no_function(make: Make) -> None:
    runner = make({"correctness": 1.0, "user.py:count_group": 1.0}, judge=FakeJudge(), verifier="code")
    verdicts, raised = score(runner, [program("ok"), program("infra_error"), program("wrong")], CODE_TASK)
    assert rewards(verdicts) == [3.0, None, 2.0]
    assert statuses(verdicts) == ["passed", "infra_error", "failed"]
    assert verdicts[1].details["detail"] == "it was infra_error"
    assert raised == {}, "hostile code that takes its slot down must not stop the run"


def test_a_sandbox_that_judges_nothing_of_a_group_has_raised(make: Make) -> None:
    runner = make({"correctness": 1.0}, judge=FakeJudge(), verifier="code")
    verdicts, raised = score(runner, [program("infra_error")] * 2, CODE_TASK)
    assert rewards(verdicts) == [None, None]
    assert raised == {"verifier code": "it was infra_error"}


def test_a_judge_that_raises_voids_the_group_and_says_why(make: Make) -> None:
    def broken(programs: Sequence[Program], tests: TestSet) -> list[Judgement]:
        raise ConnectionError("no pool")

    verdicts, raised = score(make({"correctness": 1.0}, judge=broken, verifier="code"), [program("ok")], CODE_TASK)
    assert statuses(verdicts) == ["infra_error"]
    assert raised == {"verifier code": "ConnectionError: no pool"}
    assert verdicts[0].details["verifier"] == "ConnectionError: no pool"


def test_options_of_the_verifier_reach_it(make: Make) -> None:
    judge = FakeJudge()
    runner = make({"correctness": 1.0}, judge=judge, verifier="code", verifier_options={"tests_column": "cases"})
    _, raised = score(runner, [program("ok")], CODE_TASK)
    assert "cases" in raised["verifier code"]
    assert judge.asked == []


def test_code_without_a_sandbox_is_an_error_at_the_start(make: Make) -> None:
    with pytest.raises(ValueError, match=r"reward\.verifier=code .*needs a sandbox"):
        make({"correctness": 1.0}, verifier="code")


def test_the_deadline_of_a_group_covers_network_and_sandbox() -> None:
    config = RewardConfig(verifier="code", functions={"llm_judge": 1.0}, network_time_limit_s=100.0)
    assert scoring_deadline_s(config, 8, 500.0) >= 500.0 + 2 * 100.0
    assert scoring_deadline_s(config, 8, 500.0) - scoring_deadline_s(config, 8) == 500.0
