"""What the command line does with a sandbox: tries it, checks a verifier with it, scores with it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from funicular.launch.cli import main
from funicular.launch.config import Config
from funicular.launch.health import HealthError, check_health
from funicular.rewards.config import RewardConfig
from funicular.rewards.sandbox.probe import reach
from funicular.rewards.types import Task
from tests.slots import skip_unless_possible

pytestmark = pytest.mark.integration

DOUBLES = "def double(x):\n    return 2 * x\n"
ASSERTS = ["assert double(2) == 4", "assert double(5) == 10"]


@pytest.fixture(autouse=True)
def _contained() -> None:
    skip_unless_possible()


def test_the_level_that_is_reached_is_tried_and_measured(capsys: pytest.CaptureFixture[str]) -> None:
    level = reach().level
    assert main(["sandbox", "probe"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"level {level}\n")
    assert f"self-test passed at {level}" in printed
    assert "  python: ok\n" in printed
    assert "  python, asserts in a slot of their own: ok\n" in printed
    speed = re.search(r"speed (\d+) jobs/s", printed)
    assert speed
    assert int(speed[1]) > 0


def test_reference_programs_are_judged_before_a_run(tmp_path: Path) -> None:
    def task(task_id: str, answer: str) -> Task:
        return Task(task_id=task_id, prompt="p", answer=answer, verifier="code", columns={"tests": ASSERTS})

    config = Config(reward=RewardConfig(verifier="code", functions={"length": 1.0}))
    good, wrong = task("good", DOUBLES), task("wrong", DOUBLES.replace("2", "3"))
    report = check_health(config, tmp_path, [good])
    assert (report.tasks, report.with_reference) == (1, 1)
    said = r"task wrong: the reference answer, as '```python.*gave failed, expected"
    with pytest.raises(HealthError, match=said) as caught:
        check_health(config, tmp_path, [good, wrong])
    assert "task good" not in str(caught.value)


def test_code_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUNICULAR_CACHE", str(tmp_path / "cache"))
    Path("own.yaml").write_text(
        "data: {path: code}\n"
        "sandbox: {slots: 1, all_tests: true}\n"
        "reward: {verifier: code, functions: {correctness: 1, test_fraction: 0.5}}\n"
    )
    prompt = "Write a Python function add_7(x) that returns x plus 7."
    programs = [f"```python\ndef add_7(x):\n    return {result}\n```" for result in ("x + 7", "9")]
    rows = [{"prompt": prompt, "completion": text} for text in (*programs, "I cannot.")]
    Path("completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["score", "-c", "own.yaml", "completions.jsonl", "--output", "verdicts.jsonl"]) == 0
    found = [json.loads(line) for line in Path("verdicts.jsonl").read_text().splitlines()]
    assert [v["status"] for v in found] == ["passed", "failed", "failed"]
    assert [v["reward"] for v in found] == [1.5, 0.0, 0.0]
    assert [v["details"]["outcome"] for v in found[:2]] == ["ok", "wrong"]
