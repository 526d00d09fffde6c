"""What a recipe needs of the sandbox."""

from __future__ import annotations

from dataclasses import replace

import pytest

from funicular.launch.config import Config
from funicular.launch.sandbox_checks import effective_sandbox, level_refusal, needs_sandbox, sandbox_problems
from funicular.rewards.config import RewardConfig
from funicular.rewards.sandbox.config import SandboxConfig
from funicular.rewards.sandbox.isolation import IsolationUnavailable
from funicular.rewards.types import Task


def config(verifier: str, **options: object) -> Config:
    return Config(reward=RewardConfig(verifier=verifier, verifier_options=options))


def task(verifier: str) -> Task:
    return Task(task_id="t", prompt="Q", answer=None, verifier=verifier)


def test_a_sandbox_is_needed_only_where_code_is_judged() -> None:
    assert needs_sandbox(config("code"), [])
    assert needs_sandbox(config("exact_number"), [task("exact_number"), task("code")])
    assert not needs_sandbox(config("exact_number"), [task("exact_number")])


@pytest.mark.parametrize(("language", "level"), [("python", "L1"), ("cpp", "L3"), ("bash", "L3"), ("javascript", "L3")])
def test_a_language_that_needs_processes_raises_the_required_level(language: str, level: str) -> None:
    assert effective_sandbox(config("code", language=language)).min_level == level


def test_tests_that_share_a_process_with_the_program_are_refused_unless_accepted() -> None:
    weak = config("code", same_process=True)
    (problem,) = sandbox_problems(weak)
    assert str(problem).startswith("sandbox.allow_weak_integrity=false: expected true")
    assert "reward.verifier_options.same_process" in str(problem)
    assert not list(sandbox_problems(replace(weak, sandbox=SandboxConfig(allow_weak_integrity=True))))
    assert not list(sandbox_problems(config("code", same_process=False)))


def test_a_refusal_names_the_language_that_needs_the_level() -> None:
    refusal = IsolationUnavailable("sandbox.min_level=L3: this node reaches L1")
    said = str(level_refusal(config("code", language="cpp"), refusal))
    assert said.startswith("reward.verifier_options.language=cpp needs level L3.\nsandbox.min_level=L3")
    assert level_refusal(config("code"), refusal) is refusal


def test_options_of_another_verifier_change_nothing() -> None:
    assert effective_sandbox(config("math", language="cpp")).min_level == "L1"
