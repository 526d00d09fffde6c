"""Checks of section `reward`: those of `funicular.rewards.config_checks`, and what a user's file shows unrun."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from funicular.launch.problems import Problem
from funicular.launch.yaml_nodes import show_value
from funicular.rewards.config import RewardConfig
from funicular.rewards.config_checks import Mistake, keyword_arguments, mistakes, user_file
from funicular.rewards.functions import FUNCTIONS
from funicular.rewards.nearest import did_you_mean


def reward_problems(config: RewardConfig, folder: Path) -> Iterator[Problem]:
    """Everything that is wrong with section `reward`. A user's reward file is parsed, never run.

    Args:
        folder: what paths of user functions are relative to.
    """
    for mistake in mistakes(config, folder):
        yield _problem(mistake)
    for label in config.functions:
        name, options = config.function_of(label), config.options.get(label, {})
        if name not in FUNCTIONS and keyword_arguments(options) and user_file(name, folder).is_file():
            yield from _user_function(label, name, options, folder)


def _problem(mistake: Mistake) -> Problem:
    return Problem(
        key=mistake.key,
        value=show_value(mistake.value) if mistake.has_value else "",
        expected=mistake.expected,
        nearest=mistake.hint,
        related=mistake.related,
    )


def _user_function(label: str, name: str, options: Mapping[str, Any], folder: Path) -> Iterator[Problem]:
    key = f"reward.functions.{label}"
    file, function = user_file(name, folder), name.rpartition(":")[2]
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    except (SyntaxError, UnicodeDecodeError) as error:
        yield Problem(key=key, expected=f"{file} is not valid Python: {error}")
        return
    defined = {node.name: node.args for node in tree.body if isinstance(node, ast.FunctionDef)}
    if function in defined:
        yield from _accepts(label, defined[function], options)
    elif function not in _bound_names(tree):
        expected = f"{file} defines no {function}; it defines {', '.join(defined) or 'no function'}"
        yield Problem(key=key, expected=expected, nearest=did_you_mean(function, defined))


def _accepts(label: str, arguments: ast.arguments, options: Mapping[str, Any]) -> Iterator[Problem]:
    """Options that a user's function has no parameter for."""
    accepted = [argument.arg for argument in (*arguments.args, *arguments.kwonlyargs)]
    for option in options:
        if option not in accepted and arguments.kwarg is None:
            expected = f"the function takes {', '.join(accepted) or 'nothing'}"
            key = f"reward.options.{label}.{option}"
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
