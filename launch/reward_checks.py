"""Checks of section `reward`. A user's reward file is parsed, never run."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from funicular.launch.config_values import did_you_mean
from funicular.launch.problems import Problem
from funicular.launch.yaml_nodes import show_value
from funicular.rewards.config import RewardConfig
from funicular.rewards.functions import FUNCTIONS, check_options
from funicular.rewards.verifiers import VERIFIERS

_USER_FUNCTION = re.compile(r"(.+\.py):([A-Za-z_]\w*)")


def reward_problems(config: RewardConfig, folder: Path) -> Iterator[Problem]:
    """Everything that is wrong with section `reward`.

    Args:
        folder: what paths of user functions are relative to.
    """
    if config.verifier not in VERIFIERS:
        expected = f"no such verifier; expected one of {', '.join(VERIFIERS)}"
        nearest = did_you_mean(config.verifier, VERIFIERS)
        yield Problem(key="reward.verifier", value=config.verifier, expected=expected, nearest=nearest)
    yield from _weights(config.functions)
    for name, options in config.options.items():
        key = f"reward.options.{name}"
        if name not in config.functions:
            expected = f"options for what is not in reward.functions ({', '.join(config.functions)})"
            nearest = did_you_mean(name, config.functions)
            yield Problem(key=key, expected=expected, nearest=nearest, related=("reward.functions",))
        elif not isinstance(options, Mapping) or not all(isinstance(option, str) for option in options):
            expected = "expected keyword arguments of the function, such as {target: 200}"
            yield Problem(key=key, value=show_value(options), expected=expected)
    for name in config.functions:
        options = config.options.get(name, {})
        if not isinstance(options, Mapping) or not all(isinstance(option, str) for option in options):
            continue
        if name in FUNCTIONS:
            yield from _built_in(name, options)
        else:
            yield from _user_function(name, options, folder)


def _weights(functions: Mapping[str, float]) -> Iterator[Problem]:
    key, shown = "reward.functions", show_value(dict(functions))
    if not functions:
        expected = "expected at least one reward function"
        yield Problem(key=key, value=shown, expected=expected, nearest="Write {correctness: 1.0}")
    elif not any(functions.values()):
        expected = "every weight is 0, so every reward would be 0"
        yield Problem(key=key, value=shown, expected=expected, nearest="Give one of them a weight")
    for name, weight in functions.items():
        if not math.isfinite(weight):
            yield Problem(key=f"{key}.{name}", value=show_value(weight), expected="expected a finite weight")


def _built_in(name: str, options: Mapping[str, Any]) -> Iterator[Problem]:
    function, unknown = FUNCTIONS[name], False
    for option, value in options.items():
        try:
            check_options(name, function, {option: value})
        except ValueError as error:
            unknown = True
            yield Problem(key=f"reward.options.{name}.{option}", expected=str(error).partition(": ")[2])
    if unknown:
        return
    nothing: list[Any] = []
    try:  # without completions nothing is scored, but the function looks at its options
        function(
            prompts=nothing,
            completions=nothing,
            completion_ids=nothing,
            answer=nothing,
            correct=nothing,
            task_id=nothing,
            **options,
        )
    except (ValueError, TypeError) as error:
        yield Problem(
            key=f"reward.options.{name}",
            value=show_value(dict(options)),
            expected=str(error),
            related=("reward.functions",),
        )


def _user_function(name: str, options: Mapping[str, Any], folder: Path) -> Iterator[Problem]:
    key = f"reward.functions.{name}"
    parts = _USER_FUNCTION.fullmatch(name)
    if parts is None:
        expected = f"no such reward function; expected path.py:function or one of {', '.join(FUNCTIONS)}"
        yield Problem(key=key, expected=expected, nearest=did_you_mean(name, FUNCTIONS))
        return
    file, function = folder / parts[1], parts[2]
    if not file.is_file():
        there = [path.name for path in file.parent.glob("*.py")]
        expected = f"no such file, seen from {folder}"
        yield Problem(key=key, expected=expected, nearest=did_you_mean(file.name, there))
        return
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    except (SyntaxError, UnicodeDecodeError) as error:
        yield Problem(key=key, expected=f"{file} is not valid Python: {error}")
        return
    defined = {node.name: node.args for node in tree.body if isinstance(node, ast.FunctionDef)}
    if function in defined:
        yield from _accepts(name, defined[function], options)
    elif function not in _bound_names(tree):
        expected = f"{file} defines no {function}; it defines {', '.join(defined) or 'no function'}"
        yield Problem(key=key, expected=expected, nearest=did_you_mean(function, defined))


def _accepts(name: str, arguments: ast.arguments, options: Mapping[str, Any]) -> Iterator[Problem]:
    """Options that a user's function has no parameter for."""
    accepted = [argument.arg for argument in (*arguments.args, *arguments.kwonlyargs)]
    for option in options:
        if option not in accepted and arguments.kwarg is None:
            expected = f"the function takes {', '.join(accepted) or 'nothing'}"
            key = f"reward.options.{name}.{option}"
            yield Problem(key=key, expected=expected, nearest=did_you_mean(option, accepted))


def _bound_names(tree: ast.Module) -> set[str]:
    """What a module assigns or imports at its top level, whose signature the source does not show."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names
