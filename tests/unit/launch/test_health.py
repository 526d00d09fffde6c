"""The health check: what stops a run, and what it says."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from funicular.launch.cli import main
from funicular.launch.config import Config
from funicular.launch.health import HealthError, check_health, problems_of
from funicular.rewards.config import RewardConfig
from funicular.rewards.sandbox import sandbox
from funicular.rewards.sandbox.isolation import IsolationUnavailable
from funicular.rewards.types import Status, Task, Verdict


def task(task_id: str, answer: str | None, verifier: str, **columns: object) -> Task:
    return Task(task_id=task_id, prompt="p", answer=answer, verifier=verifier, columns=columns)


def config(verifier: str, **options: object) -> Config:
    return Config(reward=RewardConfig(verifier=verifier, verifier_options=options, functions={"length": 1.0}))


def test_a_verifier_that_is_well_is_said_to_be(tmp_path: Path) -> None:
    report = check_health(config("gsm8k"), tmp_path, [task("a", "72", "gsm8k"), task("b", "#### 1,000", "gsm8k")])
    assert str(report) == "the verifier is well: 2 reference answers pass, 2 empty ones fail"


def test_every_task_whose_reference_fails_is_named_with_what_the_verifier_said(tmp_path: Path) -> None:
    broken = [
        task(name, answer, "needle") for name, answer in (("a", "one"), ("long", "word " * 200), ("b", "two words"))
    ]
    with pytest.raises(HealthError) as caught:
        check_health(config("needle", max_words=1), tmp_path, broken)
    said = str(caught.value)
    assert "reward.verifier=needle fails its health check on 3 tasks" in said
    assert "task long: the reference answer, as 'word" in said
    assert "task b: the reference answer, as 'two words', gave failed, expected passed (extracted: two words" in said
    assert "task a:" not in said
    assert "reward.health_tasks=0" in said
    assert "Correct the data" in said


@pytest.mark.parametrize("verifier", ["math", "boxed", "exact_text"])
def test_a_verifier_that_does_not_read_the_tags_that_the_prompt_asks_for_is_not_well(
    tmp_path: Path, verifier: str
) -> None:
    asked = replace(task("a", "25", verifier), prompt="What is 5 * 5? Write it between <answer> and </answer>.")
    with pytest.raises(HealthError) as caught:
        check_health(config(verifier), tmp_path, [asked])
    said = str(caught.value)
    assert "task a: the reference answer, as '<answer>25</answer>', gave failed, expected passed" in said
    assert "reward.verifier_options.tag=answer" in said


@pytest.mark.parametrize(
    ("verifier", "options", "prompt"),
    [
        ("number", {"tag": "answer"}, "Write it between <answer> and </answer>."),
        ("exact_number", {}, "Write it between <answer> and </answer>."),
        ("boxed", {}, "Write \\boxed{} between <answer> and </answer>."),
        ("gsm8k", {}, "Write #### and the number between <answer> and </answer>."),
    ],
)
def test_a_verifier_that_reads_what_the_prompt_asks_for_is_well(
    tmp_path: Path, verifier: str, options: dict[str, object], prompt: str
) -> None:
    asked = replace(task("a", "25", verifier), prompt=({"role": "user", "content": prompt},))
    report = check_health(config(verifier, **options), tmp_path, [asked])
    assert report.with_reference == 1


def test_an_empty_answer_that_passes_is_named() -> None:
    asked = task("a", "72", "gsm8k")
    passed = Verdict(reward=1.0, breakdown={}, status=Status.PASSED, details={"extracted": "nothing"})
    (problem,) = problems_of(asked, ["", "#### 72"], [passed, passed])
    assert problem == "task a: an empty answer gave passed, expected failed (extracted: nothing)"


def test_tasks_without_a_reference_are_counted_apart(tmp_path: Path) -> None:
    report = check_health(config("regex", pattern="Dear"), tmp_path, [task("a", None, "regex")])
    assert (report.tasks, report.with_reference) == (1, 0)
    assert "1 empty answers fail, 0 reference answers pass; 1 tasks have no reference" in str(report)


def test_a_verifier_that_raises_is_no_pass_and_no_fail(tmp_path: Path) -> None:
    with pytest.raises(
        HealthError, match=r"task a: an empty answer gave infra_error, expected failed \(.*not a number"
    ) as caught:
        check_health(config("gsm8k"), tmp_path, [task("a", "seventy", "gsm8k")])
    assert "Correct the data" not in str(caught.value), "nothing was judged, so no verdict is wrong"


def test_a_language_that_needs_more_than_this_machine_has_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "levels_to_try", lambda config: ())
    asked = task("a", "echo 1", "code", tests={"inputs": [""], "outputs": ["1"]})
    with pytest.raises(IsolationUnavailable, match=r"reward\.verifier_options\.language=bash needs level L3"):
        check_health(config("code", language="bash"), tmp_path, [asked])


def test_a_run_whose_verifier_is_not_well_ends_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"question {n}", "answer": f"two words {n}"} for n in range(40)]
    Path("tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("own.yaml").write_text(
        "data: {path: tasks.jsonl}\n"
        "reward: {verifier: needle, verifier_options: {max_words: 1}, health_tasks: 3}\n"
        "model: {path: ./not/there}\n"
    )
    Path("not/there").mkdir(parents=True)
    Path("not/there/config.json").write_text("{}")
    assert main(["train", "-c", "own.yaml"]) == 2
    said = capsys.readouterr().err
    assert "reward.verifier=needle fails its health check on 3 tasks" in said
    assert len(re.findall(r"task [0-9a-f]{16}: the reference answer", said)) == 3
    assert not Path("runs/run/ledger.jsonl").exists()
    assert not Path("mlflow.db").exists()


def test_a_driver_without_a_sandbox_says_how_to_train_where_the_nodes_have_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sandbox, "levels_to_try", lambda config: ())
    Path("code.yaml").write_text("data: {path: code, size: 40}\nreward: {verifier: code}\n")
    assert main(["train", "-c", "code.yaml"]) == 2
    said = capsys.readouterr().err
    assert "Untrusted code is not run" in said
    assert "Only the health check needs a sandbox on this machine; reward.health_tasks=0" in said
