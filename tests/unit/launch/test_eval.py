"""Figures of `funicular eval`: estimators against counting, void completions, and what the command refuses."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from funicular.launch.cli import main
from funicular.launch.completions_file import read_completions
from funicular.launch.eval_report import TaskResult, report_of
from funicular.launch.pass_at_k import bootstrap_interval, estimate, pass_at_k
from funicular.launch.recipe import load_recipe
from funicular.rewards.types import Status, Task, Verdict


@pytest.mark.parametrize(("completions", "passed", "k"), [(5, 2, 1), (5, 2, 3), (5, 0, 2), (5, 5, 4), (6, 1, 6)])
def test_pass_at_k_is_the_share_of_subsets_with_a_completion_that_passes(completions: int, passed: int, k: int) -> None:
    subsets = list(itertools.combinations([True] * passed + [False] * (completions - passed), k))
    assert pass_at_k(completions, passed, k) == pytest.approx(np.mean([any(subset) for subset in subsets]))


def test_pass_at_more_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="pass@4: expected k from 1 to the 3 completions"):
        pass_at_k(3, 1, 4)


def test_the_interval_of_many_tasks_is_that_of_the_normal_distribution() -> None:
    values = [1.0] * 300 + [0.0] * 700
    interval = bootstrap_interval(values)
    assert interval is not None
    half = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert interval == pytest.approx((0.3 - half, 0.3 + half), abs=0.003)
    assert interval == bootstrap_interval(values)


def test_tasks_that_all_agree_have_no_interval() -> None:
    found = estimate([1.0, 1.0, 1.0])
    assert (found.value, found.low, found.high, found.tasks) == (1.0, None, None, 3)


def result(name: str, *statuses: Status) -> TaskResult:
    rewards = {Status.PASSED: 1.0, Status.FAILED: 0.25, Status.INFRA_ERROR: None}
    verdicts = tuple(
        Verdict(reward=rewards[status], breakdown={"correctness": rewards[status], "other": None}, status=status)
        for status in statuses
    )
    count = len(statuses)
    return TaskResult(
        task=Task(task_id=name, prompt="p", answer="a", verifier="exact_number"),
        texts_G=("text",) * count,
        lengths_G=(3,) * count,
        truncated_G=(True,) + (False,) * (count - 1),
        verdicts_G=verdicts,
    )


def test_completions_without_a_verdict_are_counted_and_in_no_mean() -> None:
    results = [
        result("a", Status.PASSED, Status.FAILED),
        result("b", Status.PASSED, Status.INFRA_ERROR),
        result("c", Status.FAILED, Status.FAILED),
    ]
    report = report_of(
        results, model="m", task_set="train", tasks=4, completions=2, temperature=1.0, ks=(1, 2), seconds=1.0
    )
    assert report.not_judged == 3
    assert report.pass_at[1].value == pytest.approx((0.5 + 1 + 0) / 3)
    assert report.pass_at[2].value == pytest.approx((1 + 0) / 2)
    assert report.reward is not None
    assert report.reward.value == pytest.approx((0.625 + 1 + 0.25) / 3)
    assert list(report.functions) == ["correctness"]
    assert report.truncated_frac == 0.5
    assert "3 not judged" in report.text()
    assert json.loads(json.dumps(report.record()))["pass_at"]["2"]["tasks"] == 2


def test_the_lines_are_a_file_that_score_reads(tmp_path: Path) -> None:
    config = load_recipe(["embedded"], []).config
    from funicular.launch.tasks import load_tasks

    task = load_tasks(config.data, config.reward.verifier, config.seed).held_out[0]
    one = result("x", Status.PASSED, Status.FAILED)
    lines = TaskResult(
        task=task,
        texts_G=("It is 4.", "5"),
        lengths_G=one.lengths_G,
        truncated_G=one.truncated_G,
        verdicts_G=one.verdicts_G,
    ).lines()
    file = tmp_path / "completions.jsonl"
    file.write_text(lines)
    read = read_completions(file, config)
    assert [(row.task.task_id, row.text) for row in read] == [(task.task_id, "It is 4."), (task.task_id, "5")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--k", "4", "--completions", "2"], "--completions 2: pass@4 needs at least 4"),
        (["--k", "4", "--temperature", "0"], "temperature 0: expected above 0"),
        (["data.held_out_fraction=0", "evaluation.tasks=0"], "--set held_out: the recipe holds out no tasks"),
        (["--model", "/nowhere"], "model.path=/nowhere"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_starts(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "-c", "embedded", *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_model_names_the_command_that_writes_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("config.yaml", "ledger.jsonl"):
        (tmp_path / name).touch()
    assert main(["eval", "-c", "embedded", "--model", str(tmp_path)]) == 2
    assert f"funicular export {tmp_path}" in capsys.readouterr().err
