"""What a recipe needs of the sandbox."""

from __future__ import annotations

import pytest

from funicular.launch.config import Config
from funicular.launch.sandbox_checks import effective_sandbox, needs_sandbox
from funicular.rewards.config import RewardConfig
from funicular.rewards.types import Task


def config(verifier: str, **options: str) -> Config:
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


def test_options_of_another_verifier_change_nothing() -> None:
    assert effective_sandbox(config("math", language="cpp")).min_level == "L1"
