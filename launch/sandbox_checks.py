"""Checks of section `sandbox`, and what a recipe needs of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from funicular.launch.config import Config
from funicular.launch.config_values import problem_at
from funicular.launch.problems import Problem
from funicular.rewards.sandbox.config import SandboxConfig
from funicular.rewards.sandbox.isolation import IsolationUnavailable
from funicular.rewards.types import Task
from funicular.rewards.verifiers import SANDBOXED

LANGUAGE_KEY = "reward.verifier_options.language"
_L3_ONLY = ("bash", "cpp", "javascript")


def sandbox_problems(config: Config) -> Iterator[Problem]:
    """What of section `sandbox` no machine could do."""
    sandbox = config.sandbox
    if sandbox.isolation == "L1" and sandbox.min_level == "L3":
        expected = "expected auto or L3, because sandbox.min_level=L3 accepts nothing below"
        nearest = "Set sandbox.isolation=auto, or sandbox.min_level=L1"
        yield problem_at(config, "sandbox.isolation", expected, nearest, "sandbox.min_level")
    if sandbox.isolation == "L1" and (language := _l3_language(config)):
        expected = f"expected auto or L3, because {LANGUAGE_KEY}={language} needs processes, which L1 denies"
        yield problem_at(config, "sandbox.isolation", expected, "Set sandbox.isolation=auto", LANGUAGE_KEY)
    if _code_option(config, "same_process") and not sandbox.allow_weak_integrity:
        key = "reward.verifier_options.same_process"
        expected = f"expected true, because with {key}=true a program can write its own verdict"
        nearest = f"Set it to true to accept that, or leave {key} out"
        yield problem_at(config, "sandbox.allow_weak_integrity", expected, nearest, key)


def needs_sandbox(config: Config, tasks: Iterable[Task]) -> bool:
    """Whether anything of a run is judged in a sandbox."""
    return config.reward.verifier in SANDBOXED or any(task.verifier in SANDBOXED for task in tasks)


def effective_sandbox(config: Config) -> SandboxConfig:
    """Section `sandbox`, with the least level that the recipe's language can be judged at."""
    return replace(config.sandbox, min_level="L3") if _l3_language(config) else config.sandbox


def language_of(config: Config) -> str:
    """The language of the programs that a run judges."""
    return _code_option(config, "language") or "python"


def level_refusal(config: Config, error: IsolationUnavailable) -> IsolationUnavailable:
    """The refusal of a sandbox with `effective_sandbox`; says so where it is the language that needs the level."""
    if (language := _l3_language(config)) is None or config.sandbox.min_level == "L3":
        return error
    return IsolationUnavailable(f"{LANGUAGE_KEY}={language} needs level L3.\n{error}")


def _l3_language(config: Config) -> str | None:
    language = language_of(config)
    return language if language in _L3_ONLY else None


def _code_option(config: Config, name: str) -> Any:
    """An option of the verifier; None where it judges no code."""
    return config.reward.verifier_options.get(name) if config.reward.verifier in SANDBOXED else None
