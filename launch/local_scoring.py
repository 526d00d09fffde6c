"""Scoring in this process, without Ray: what `funicular score` and the health check use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from funicular.launch.config import Config
from funicular.launch.sandbox_checks import effective_sandbox, level_refusal
from funicular.rewards.config import RewardConfig
from funicular.rewards.runner import FunctionRunner
from funicular.rewards.sandbox.isolation import IsolationUnavailable
from funicular.rewards.sandbox.types import Judgement, Program, TestSet
from funicular.rewards.types import Verdict
from funicular.rewards.verifiers import SANDBOXED


@contextmanager
def local_runner(config: Config, folder: Path) -> Iterator[FunctionRunner]:
    """A runner with everything loaded, and a sandbox of this machine behind it where the verifier needs one.

    Raises:
        ValueError: section `reward` is wrong, a function cannot be loaded, or this machine does not contain untrusted
            code as the recipe requires.
    """
    if config.reward.verifier not in SANDBOXED:
        with _started(FunctionRunner(config.reward, folder)) as runner:
            yield runner
        return
    from funicular.rewards.sandbox.sandbox import Sandbox  # most recipes need none

    try:
        opened = Sandbox(effective_sandbox(config))
    except IsolationUnavailable as error:
        raise level_refusal(config, error) from error
    with opened as sandbox:

        def judge(programs: Sequence[Program], tests: TestSet) -> list[Judgement]:
            return sandbox.judge_many(programs, tests)

        with _started(FunctionRunner(config.reward, folder, judge)) as runner:
            yield runner


def verifier_alone(reward: RewardConfig) -> RewardConfig:
    """The same verifier without the recipe's reward functions."""
    return replace(reward, functions={"correctness": 1.0}, uses={}, options={}, gates={}, network=[])


def check_loading(reward: RewardConfig, folder: Path) -> None:
    """Load verifier and reward functions once: what cannot be loaded must not first show as a scorer that dies.

    Raises:
        ValueError: names what could not be loaded.
    """
    with _started(FunctionRunner(reward, folder, _no_judge)):
        pass


def details_text(verdict: Verdict) -> str:
    """A verdict's details on one line for people; the sandbox's own sentence comes first."""
    given = [(name, value) for name, value in verdict.details.items() if value]
    given.sort(key=lambda item: item[0] != "detail")
    return ", ".join(value if name == "detail" else f"{name}: {value}" for name, value in given)


def _no_judge(programs: Sequence[Program], tests: TestSet) -> list[Judgement]:
    raise AssertionError("loading reward functions judges no code")


@contextmanager
def _started(runner: FunctionRunner) -> Iterator[FunctionRunner]:
    try:
        runner.start()
        yield runner
    finally:
        runner.close()
