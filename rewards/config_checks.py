"""Checks of section `reward` that run no user code: names, weights, options, gates. All mistakes at once."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from funicular.rewards.config import RewardConfig
from funicular.rewards.functions import FUNCTIONS
from funicular.rewards.nearest import did_you_mean
from funicular.rewards.verifiers import SANDBOXED, VERIFIERS

_USER_FUNCTION = re.compile(r"(.+\.py):([A-Za-z_]\w*)")
_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_ABSENT = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """One thing that is wrong with section `reward`."""

    key: str
    """Dotted."""
    value: Any = _ABSENT
    """What stands there, unless the key says it already."""
    expected: str
    hint: str = ""
    """What to write instead."""
    related: tuple[str, ...] = ()
    """Other keys that the rule read."""

    @property
    def has_value(self) -> bool:
        """Whether `value` is to be shown."""
        return self.value is not _ABSENT

    def __str__(self) -> str:
        subject = f"{self.key}={self.value!r}" if self.has_value else self.key
        return ". ".join(part for part in (f"{subject}: {self.expected}", self.hint) if part)


def check_rewards(config: RewardConfig, folder: Path) -> dict[str, Path]:
    """Check section `reward`.

    Args:
        folder: the recipe's; paths of user functions are relative to it.

    Returns:
        Absolute file of each user function `path.py:function`, by that name.

    Raises:
        ValueError: everything that is wrong with it, a line each.
    """
    found = list(mistakes(config, folder))
    if found:
        raise ValueError("\n".join(map(str, found)))
    names = {config.function_of(label) for label in config.functions} - set(FUNCTIONS)
    return {name: user_file(name, folder) for name in sorted(names)}


def mistakes(config: RewardConfig, folder: Path) -> Iterator[Mistake]:
    """What is wrong with section `reward`, up to what only running a user's file would show."""
    yield from _verifier(config)
    yield from _weights(config.functions)
    yield from _uses(config)
    for label in dict.fromkeys((*config.functions, *config.uses)):
        yield from _function(label, config, folder)
    yield from _options(config)
    yield from _gates(config)
    for label in config.network:
        if label not in config.functions:
            yield _not_a_function("reward.network", label, config)
    yield from _judge_deadlines(config)


def user_file(name: str, folder: Path) -> Path:
    """Absolute path of the file of `path.py:function`."""
    return (folder / name.rpartition(":")[0]).resolve()


def keyword_arguments(options: Any) -> bool:
    """Whether it can be handed to a function as keyword arguments."""
    return isinstance(options, Mapping) and all(isinstance(option, str) for option in options)


def accepted_options(function: Callable[..., Any], *, built_in: bool) -> list[str] | None:
    """Names of the options that a function takes; None: any.

    A built-in takes its keyword-only parameters. A user's function takes what it has a name for, and anything if it
    has **kwargs.
    """
    parameters = inspect.signature(function).parameters.values()
    if not built_in and any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return None
    kinds = {inspect.Parameter.KEYWORD_ONLY} | (set() if built_in else {inspect.Parameter.POSITIONAL_OR_KEYWORD})
    return [p.name for p in parameters if p.kind in kinds]


def option_mistakes(
    key: str, function: Callable[..., Any], options: Mapping[str, Any], *, built_in: bool
) -> Iterator[Mistake]:
    """Options that a function does not take; `key` is where they stand."""
    accepted = accepted_options(function, built_in=built_in)
    if accepted is None:
        return
    for option in options:
        if option not in accepted:
            takes = f"the options {', '.join(accepted)}" if accepted else "no options"
            yield Mistake(
                key=f"{key}.{option}", expected=f"no such option; it takes {takes}", hint=did_you_mean(option, accepted)
            )


def _verifier(config: RewardConfig) -> Iterator[Mistake]:
    name, key = config.verifier, "reward.verifier_options"
    known = sorted({*VERIFIERS, *SANDBOXED})
    if name not in known:
        expected = f"no such verifier; expected one of {', '.join(known)}"
        yield Mistake(key="reward.verifier", value=name, expected=expected, hint=did_you_mean(name, known))
    elif not keyword_arguments(config.verifier_options):
        expected = "expected keyword arguments of the verifier, such as {tolerance: 0.01}"
        yield Mistake(key=key, value=config.verifier_options, expected=expected)
    elif name in SANDBOXED:
        yield from _code_options(key, config.verifier_options)
    else:
        yield from option_mistakes(key, VERIFIERS[name], config.verifier_options, built_in=True)


def _code_options(key: str, options: Mapping[str, Any]) -> Iterator[Mistake]:
    from funicular.rewards.code import CodeOptions, verify_code

    unknown = list(option_mistakes(key, verify_code, options, built_in=True))
    yield from unknown
    if unknown:
        return
    try:
        CodeOptions(**options)
    except ValueError as error:
        yield Mistake(key=key, value=dict(options), expected=str(error))


def _weights(functions: Mapping[str, float]) -> Iterator[Mistake]:
    key = "reward.functions"
    if not functions:
        expected = "it is empty; expected at least one reward function"
        yield Mistake(key=key, value={}, expected=expected, hint="Write {correctness: 1.0}")
    elif not any(functions.values()):
        expected = "every weight is 0, so every reward would be 0"
        yield Mistake(key=key, value=dict(functions), expected=expected, hint="Give one of them a weight")
    for name, weight in functions.items():
        if not math.isfinite(weight):
            yield Mistake(key=f"{key}.{name}", value=weight, expected="expected a finite weight")


def _uses(config: RewardConfig) -> Iterator[Mistake]:
    for label in config.uses:
        key = f"reward.uses.{label}"
        if label not in config.functions:
            yield _not_a_function(key, label, config)
        if label in FUNCTIONS:
            yield Mistake(key=key, expected=f"{label} is a built-in function", hint="Choose another name")
        elif not _LABEL.fullmatch(label):
            yield Mistake(key=key, expected="expected a name of your own, of letters, digits, _ and -")


def _function(label: str, config: RewardConfig, folder: Path) -> Iterator[Mistake]:
    """Whether there is such a function."""
    name = config.function_of(label)
    key = f"reward.uses.{label}" if label in config.uses else f"reward.functions.{label}"
    if name in FUNCTIONS:
        return
    parts = _USER_FUNCTION.fullmatch(name)
    value = name if label in config.uses else _ABSENT
    if parts is None:
        expected = f"no such reward function; expected path.py:function or one of {', '.join(sorted(FUNCTIONS))}"
        yield Mistake(key=key, value=value, expected=expected, hint=did_you_mean(name, FUNCTIONS))
    elif not (file := user_file(name, folder)).is_file():
        there = [path.name for path in file.parent.glob("*.py")]
        expected = f"there is no file {file}; paths are relative to the recipe's folder"
        yield Mistake(key=key, value=value, expected=expected, hint=did_you_mean(file.name, there))


def _options(config: RewardConfig) -> Iterator[Mistake]:
    for label, options in config.options.items():
        key = f"reward.options.{label}"
        if label not in config.functions:
            yield _not_a_function(key, label, config)
        elif not keyword_arguments(options):
            expected = "expected keyword arguments of the function, such as {target: 200}"
            yield Mistake(key=key, value=options, expected=expected)
    for label in config.functions:
        options = config.options.get(label, {})
        name = config.function_of(label)
        if name in FUNCTIONS and keyword_arguments(options):
            yield from _built_in_options(f"reward.options.{label}", name, options)


def _built_in_options(key: str, name: str, options: Mapping[str, Any]) -> Iterator[Mistake]:
    unknown = list(option_mistakes(key, FUNCTIONS[name], options, built_in=True))
    yield from unknown
    if unknown:
        return
    of_tasks = ("prompts", "completions", "completion_ids", "answer", "correct", "details", "task_id")
    try:  # without completions nothing is scored, but the function looks at its options
        FUNCTIONS[name](**{argument: [] for argument in of_tasks}, **options)
    except (ValueError, TypeError) as error:
        yield Mistake(key=key, value=dict(options), expected=str(error), related=("reward.functions",))


def _gates(config: RewardConfig) -> Iterator[Mistake]:
    for label, gate in config.gates.items():
        key = f"reward.gates.{label}"
        for name in dict.fromkeys((label, gate)):
            if name not in config.functions:
                yield _not_a_function(key, name, config)
        if label == gate:
            yield Mistake(key=key, value=gate, expected="a function cannot be its own gate")


def _judge_deadlines(config: RewardConfig) -> Iterator[Mistake]:
    from funicular.rewards.llm_judge import DEADLINE_S

    for label in config.functions:
        options = config.options.get(label, {})
        if config.function_of(label) != "llm_judge" or not keyword_arguments(options):
            continue
        deadline_s = options.get("deadline_s", DEADLINE_S)
        if isinstance(deadline_s, int | float) and deadline_s >= config.network_time_limit_s:
            yield Mistake(
                key=f"reward.options.{label}.deadline_s",
                value=deadline_s,
                expected=f"expected less than reward.network_time_limit_s, {config.network_time_limit_s:g}",
                related=("reward.network_time_limit_s",),
            )


def _not_a_function(key: str, name: str, config: RewardConfig) -> Mistake:
    expected = f"{name} is not in reward.functions ({', '.join(config.functions)})"
    hint = did_you_mean(name, config.functions) or f"Add it to reward.functions, with weight 0 if need be: {name}: 0"
    return Mistake(key=key, expected=expected, hint=hint, related=("reward.functions",))
