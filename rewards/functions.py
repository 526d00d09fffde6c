"""Built-in reward functions, and the names of a recipe's functions.

A reward function has TRL's signature: keyword arguments in, one number per completion out.

    def function(prompts, completions, **columns) -> list[float | None]

`completions` are texts, or one-message lists where the task's prompt is chat messages; `columns` are the
dataset's columns as lists of G, and `answer`, `task_id`, `correct` (what the verifier said) and
`completion_ids` (tokens). None
means: does not apply to this task.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from funicular.rewards import gsm8k
from funicular.rewards.config import RewardConfig
from funicular.rewards.messages import texts_of
from funicular.rewards.nearest import known_names
from funicular.rewards.verifiers import as_number, check_verifier, last_number

RewardFunction = Callable[..., list[float | None]]

_FORMAT = re.compile(r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*", re.DOTALL)


def correctness(correct: list[bool], **_: Any) -> list[float | None]:
    """1.0 if the verifier says correct, else 0.0."""
    return [1.0 if value else 0.0 for value in correct]


def closeness(
    completions: list[Any], answer: list[str | None], *, tolerance: float = 1.0, **_: Any
) -> list[float | None]:
    """Graded by numeric distance: 1 at the reference, falling linearly to 0 at tolerance * max(1,
    |reference|) away.

    The completion's number is its last one; 0.0 without one. None where the reference is no number.
    """
    if tolerance <= 0:
        raise ValueError(f"closeness: tolerance={tolerance}, expected a number above 0")
    return [_closeness(text, ref, tolerance) for text, ref in zip(texts_of(completions), answer, strict=True)]


def length(
    completion_ids: list[list[int]], *, target: int | None = None, max: int | None = None, **_: Any
) -> list[float | None]:
    """Of tokens. With `target`: 1 there, falling linearly to 0 at 0 and at twice the target. With `max`: 1 up
    to it, falling linearly to 0 at twice as many. Give exactly one of the two."""
    if (target is None) == (max is None):
        raise ValueError(f"length: target={target}, max={max}; expected exactly one of them in reward.options.length")
    goal = target or max or 0
    if goal <= 0:
        raise ValueError(f"length: {goal} tokens; expected a number above 0")
    counts = [len(ids) for ids in completion_ids]
    over = [abs(n - goal) if target is not None or n > goal else 0 for n in counts]
    return [1.0 - distance / goal if distance < goal else 0.0 for distance in over]


def format_tags(completions: list[Any], **_: Any) -> list[float | None]:
    """1.0 if the whole text is <think>...</think><answer>...</answer>, white space between them allowed."""
    return [1.0 if _FORMAT.fullmatch(text) else 0.0 for text in texts_of(completions)]


FUNCTIONS: dict[str, RewardFunction] = {
    "correctness": correctness,
    "closeness": closeness,
    "length": length,
    "format_tags": format_tags,
    "gsm8k_correctness": gsm8k.gsm8k_correctness,
    "gsm8k_integer": gsm8k.gsm8k_integer,
    "gsm8k_strict_format": gsm8k.gsm8k_strict_format,
    "gsm8k_soft_format": gsm8k.gsm8k_soft_format,
    "gsm8k_xml_count": gsm8k.gsm8k_xml_count,
}


def check_rewards(config: RewardConfig, folder: Path) -> dict[str, Path]:
    """Check section `reward` without running a user's code.

    Args:
        folder: the recipe's; paths of user functions are relative to it.

    Returns:
        Absolute file of each user function `path.py:function`, by its name in the recipe.

    Raises:
        ValueError: an unknown name, a missing file, a bad weight or option; says which key.
    """
    check_verifier(config.verifier)
    if not config.functions:
        raise ValueError("reward.functions is empty; expected at least one function, such as {correctness: 1.0}")
    for name, weight in config.functions.items():
        if not math.isfinite(weight):
            raise ValueError(f"reward.functions.{name}={weight}: expected a finite weight")
    for name, options in config.options.items():
        if name not in config.functions:
            raise ValueError(
                f"reward.options.{name}: not among reward.functions; {known_names(name, config.functions)}"
            )
        if not isinstance(options, Mapping):
            raise ValueError(f"reward.options.{name}={options!r}: expected keyword arguments, such as {{target: 200}}")
        if name in FUNCTIONS:
            check_options(name, FUNCTIONS[name], options)
    return {name: _user_file(name, folder) for name in config.functions if name not in FUNCTIONS}


def check_options(name: str, function: RewardFunction, options: Mapping[str, Any]) -> None:
    """Raises ValueError for an option that the function does not take.

    A user's function that has **kwargs takes any; a built-in takes its keyword-only parameters.
    """
    parameters = inspect.signature(function).parameters.values()
    built_in = name in FUNCTIONS
    if not built_in and any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return
    kinds = {inspect.Parameter.KEYWORD_ONLY} | (set() if built_in else {inspect.Parameter.POSITIONAL_OR_KEYWORD})
    accepted = [p.name for p in parameters if p.kind in kinds]
    for option in options:
        if option not in accepted:
            raise ValueError(f"reward.options.{name}.{option}: no such option; {known_names(option, accepted)}")


def arguments_for(function: RewardFunction, available: Mapping[str, Any]) -> dict[str, Any]:
    """What of `available` the function takes by name; all of it if it has **kwargs."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return dict(available)
    return {name: value for name, value in available.items() if name in parameters}


def _user_file(name: str, folder: Path) -> Path:
    path, colon, attribute = name.rpartition(":")
    if not colon or not attribute.isidentifier() or not path.endswith(".py"):
        raise ValueError(
            f"reward.functions.{name}: neither path.py:function nor built-in; {known_names(name, FUNCTIONS)}"
        )
    file = (folder / path).resolve()
    if not file.is_file():
        raise ValueError(f"reward.functions.{name}: no file {file}; paths are relative to the recipe's folder")
    return file


def _closeness(text: str, reference: str | None, tolerance: float) -> float | None:
    expected = None if reference is None else as_number(reference)
    if expected is None:
        return None
    found = last_number(text)
    if found is None:
        return 0.0
    distance = abs(float(found) - float(expected)) / (tolerance * max(1.0, abs(float(expected))))
    return max(0.0, 1.0 - distance)
