"""Checks of section `reward`. A user's reward file is parsed, never run."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from funicular.launch.problems import Problem
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
        yield Problem(
            key="reward.verifier",
            value=config.verifier,
            expected=f"no such verifier; expected one of {', '.join(VERIFIERS)}",
            nearest=_nearest(config.verifier, VERIFIERS),
        )
    functions = config.functions
    if not functions:
        expected = "expected at least one reward function"
        yield Problem(
            key="reward.functions", value="{}", expected=expected, nearest="Write {correctness: 1.0}"
        )
    elif not any(functions.values()):
        expected = "every weight is 0, so every reward would be 0"
        yield Problem(
            key="reward.functions", value=str(functions), expected=expected, nearest="Give one a weight"
        )
    for name, weight in functions.items():
        if not math.isfinite(weight):
            yield Problem(
                key=f"reward.functions.{name}", value=str(weight), expected="expected a finite weight"
            )
    for name in config.options:
        if name not in functions:
            yield Problem(
                key=f"reward.options.{name}",
                expected=f"options for a function that is not in reward.functions ({', '.join(functions)})",
                nearest=_nearest(name, functions),
                related=("reward.functions",),
            )
        elif not isinstance(config.options[name], Mapping):
            expected = "expected keyword arguments of the function, such as {target: 200}"
            yield Problem(key=f"reward.options.{name}", value=str(config.options[name]), expected=expected)
    for name in functions:
        options = config.options.get(name) or {}
        if isinstance(options, Mapping):
            yield from (
                _built_in(name, options) if name in FUNCTIONS else _user_function(name, options, folder)
            )


def _built_in(name: str, options: Mapping[str, Any]) -> Iterator[Problem]:
    unknown = False
    for option, value in options.items():
        try:
            check_options(name, FUNCTIONS[name], {option: value})
        except ValueError as error:
            unknown = True
            yield Problem(key=f"reward.options.{name}.{option}", expected=str(error).partition(": ")[2])
    if unknown:
        return
    try:  # no completions: nothing is scored, but the function checks its own options
        FUNCTIONS[name](
            prompts=[], completions=[], completion_ids=[], answer=[], correct=[], task_id=[], **options
        )
    except (ValueError, TypeError) as error:
        yield Problem(key=f"reward.options.{name}", value=str(dict(options)), expected=str(error))


def _user_function(name: str, options: Mapping[str, Any], folder: Path) -> Iterator[Problem]:
    key = f"reward.functions.{name}"
    parts = _USER_FUNCTION.fullmatch(name)
    if parts is None:
        yield Problem(
            key=key,
            expected=f"no such reward function; expected path.py:function or one of {', '.join(FUNCTIONS)}",
            nearest=_nearest(name, FUNCTIONS),
        )
        return
    file = folder / parts[1]
    if not file.is_file():
        near = get_close_matches(Path(parts[1]).name, [path.name for path in file.parent.glob("*.py")], n=1)
        expected = f"no such file: {parts[1]}, seen from the recipe's folder {folder}"
        yield Problem(key=key, expected=expected, nearest=f"Did you mean {near[0]}?" if near else "")
        return
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        yield Problem(key=key, expected=f"{file} is not valid Python: {error}")
        return
    signatures = {node.name: node.args for node in tree.body if isinstance(node, ast.FunctionDef)}
    if parts[2] not in signatures:
        defined = ", ".join(signatures) or "none"
        expected = f"{file} defines no function {parts[2]} at its top level; it defines {defined}"
        yield Problem(key=key, expected=expected, nearest=_nearest(parts[2], signatures))
        return
    arguments = signatures[parts[2]]
    accepted = [argument.arg for argument in (*arguments.args, *arguments.kwonlyargs)]
    for option in options if arguments.kwarg is None else ():
        if option not in accepted:
            expected = f"the function takes no {option}; it takes {', '.join(accepted) or 'nothing'}"
            yield Problem(
                key=f"reward.options.{name}.{option}", expected=expected, nearest=_nearest(option, accepted)
            )


def _nearest(name: str, known: Any) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f"Did you mean {near[0]}?" if near else ""
