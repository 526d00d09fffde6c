"""Test code as datasets write it: HumanEval, MBPP, unittest and pytest files. It runs in a slot of its own."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from funicular.rewards.sandbox.format_cases import wrong
from funicular.rewards.sandbox.types import TesterStyle, TesterTests


def from_humaneval(
    name: str, test: Any, entry_point: Any, prompt: str | None, *, same_process: bool = False
) -> TesterTests:
    """Source that defines `check(candidate)`.

    Args:
        prompt: the task's Python prompt, run before the test: HumanEval 32, 38 and 50 check with its helpers.

    Raises:
        ValueError: no Python, no `check`, or no name of the candidate's function.
    """
    if not isinstance(test, str) or "check" not in _defined(f"{name}.test", test):
        raise wrong(f"{name}.test", test, "Python source that defines check(candidate)")
    if not isinstance(entry_point, str) or not entry_point.isidentifier():
        raise wrong(f"{name}: entry_point", entry_point, "the name of the candidate's function")
    if prompt is not None:
        _defined(f"{name}.prompt", prompt)
    return TesterTests(
        style=TesterStyle.HUMANEVAL,
        source=test,
        entry_point=entry_point,
        prelude=prompt or "",
        same_process=same_process,
    )


def from_asserts(name: str, statements: Sequence[Any], setup: str, *, same_process: bool = False) -> TesterTests:
    """Statements that raise if the candidate is wrong, and the source of the set-up before them.

    Raises:
        ValueError: there are none, or one is no Python.
    """
    if not len(statements):
        raise wrong(name, statements, "at least one assert statement")
    checks_itself = _asserts(_parsed(f"{name}: set-up", setup))
    for index, statement in enumerate(statements):
        is_text = isinstance(statement, str)
        if not is_text or not (_asserts(_parsed(f"{name}[{index}]", statement)) or checks_itself):
            raise wrong(f"{name}[{index}]", statement, "Python source of an assert statement")
    return TesterTests(style=TesterStyle.ASSERTS, source=setup, statements=tuple(statements), same_process=same_process)


def from_source(name: str, style: TesterStyle, source: Any, *, same_process: bool = False) -> TesterTests:
    """A unittest or pytest file. It imports the candidate from the module `solution`.

    Raises:
        ValueError: no Python, or no test in it.
    """
    if not isinstance(source, str):
        raise wrong(name, source, f"the source of a {style} file")
    if not has_tests(style, _parsed(name, source)):
        what = "a class with TestCase among its bases" if style is TesterStyle.UNITTEST else "a function test_*"
        raise wrong(name, source, f"a {style} file with {what}")
    return TesterTests(style=style, source=source, same_process=same_process)


def is_python(source: str) -> bool:
    """Whether the text parses."""
    try:
        ast.parse(source)
    except (SyntaxError, ValueError):
        return False
    return True


def style_of(name: str, source: str) -> TesterStyle:
    """What kind of test code this is.

    Raises:
        ValueError: no Python, or of no kind that is known.
    """
    tree = _parsed(name, source)
    for style in (TesterStyle.UNITTEST, TesterStyle.PYTEST):
        if has_tests(style, tree):
            return style
    if any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body):
        return TesterStyle.HUMANEVAL
    if any(isinstance(node, ast.Assert) for node in tree.body):
        return TesterStyle.ASSERTS
    raise wrong(
        name, source, "Python with a TestCase, with functions test_*, with check(candidate) or with assert statements"
    )


def split_asserts(name: str, source: str) -> list[str]:
    """The statements of a source, cut after each assert: what one of them needs stands before it."""
    parts: list[list[ast.stmt]] = [[]]
    for node in _parsed(name, source).body:
        parts[-1].append(node)
        if isinstance(node, ast.Assert):
            parts.append([])
    return ["\n".join(map(ast.unparse, part)) for part in parts if part and isinstance(part[-1], ast.Assert)]


def has_tests(style: TesterStyle, tree: ast.Module) -> bool:
    """Whether a unittest or pytest file has a test that such a runner would find."""
    return any(_is_test(style, node) for node in tree.body)


def _is_test(style: TesterStyle, node: ast.stmt) -> bool:
    if isinstance(node, ast.ClassDef):
        is_case = any(ast.unparse(base).endswith("TestCase") for base in node.bases)
        return is_case if style is TesterStyle.UNITTEST else node.name.startswith("Test") and not is_case
    is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test")
    return style is TesterStyle.PYTEST and is_function


def _asserts(tree: ast.Module) -> bool:
    """Whether something in it can fail on purpose: assert, raise, or a call such as assertEqual(...)."""
    return any(
        isinstance(node, ast.Assert | ast.Raise)
        or (isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2].startswith("assert"))
        for node in ast.walk(tree)
    )


def _defined(name: str, source: str) -> set[str]:
    return {node.name for node in _parsed(name, source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def _parsed(name: str, source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{name}: no Python source: {error}") from None
