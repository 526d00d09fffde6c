"""Checks of section `sandbox`, and what a recipe needs of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from funicular.launch.config import Config
from funicular.launch.config_values import problem_at
from funicular.launch.problems import Problem
from funicular.rewards.sandbox.config import SandboxConfig
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


def needs_sandbox(config: Config, tasks: Iterable[Task]) -> bool:
    """Whether anything of a run is judged in a sandbox."""
    return config.reward.verifier in SANDBOXED or any(task.verifier in SANDBOXED for task in tasks)


def effective_sandbox(config: Config) -> SandboxConfig:
    """Section `sandbox`, with the least level that the recipe's language can be judged at."""
    return replace(config.sandbox, min_level="L3") if _l3_language(config) else config.sandbox


def _l3_language(config: Config) -> str | None:
    language = config.reward.verifier_options.get("language")
    return language if config.reward.verifier in SANDBOXED and language in _L3_ONLY else None
