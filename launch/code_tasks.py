"""The embedded set of code tasks: small functions, made by rule, with tests in four formats."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from funicular.launch.code_families import FAMILIES, Family, Takes
from funicular.rewards.nearest import known_names

FORMATS = ("calls", "asserts", "humaneval", "stdio")
"""Kinds of this set: how a task is asked and tested."""
CASES = 6
_DRAWS = 1000

_WORDS = ("aloe", "area", "error", "level", "noon", "onion", "river", "roses", "salt", "seven", "street", "taller")
_READ = {"int": "int(input())", "text": "input()", "ints": "[int(n) for n in input().split()]"}
_GIVEN = {"int": "int(input())", "text": "input()", "ints": "the list of numbers in input()"}


def code_rows(kinds: str | None, size: int, seed: int) -> list[dict[str, Any]]:
    """Rows with columns prompt, answer (the reference solution), tests, entry_point, kind, family and level.

    A function comes in each of the kinds, one after the other. Programs that would print a list are left out of
    stdio, since a task of a few words cannot say how.

    Args:
        kinds: names from FORMATS, separated by commas; None: all.
        size: rows; fewer if the kinds have no more.

    Raises:
        ValueError: an unknown or repeated kind.
    """
    names = kind_names(kinds)
    return list(islice(_rows(names, seed), size))


def kind_names(kinds: str | None) -> list[str]:
    """The kinds that `data.kinds` names.

    Raises:
        ValueError: an unknown or repeated kind.
    """
    names = [name.strip() for name in kinds.split(",")] if kinds is not None else list(FORMATS)
    for name in names:
        if name not in FORMATS:
            raise ValueError(f"data.kinds={kinds}: no kind {name!r}; {known_names(name, FORMATS)}")
    if len(set(names)) != len(names):
        raise ValueError(f"data.kinds={kinds}: a kind stands there twice; expected each once")
    return names


def _rows(kinds: list[str], seed: int) -> Iterator[dict[str, Any]]:
    functions = [(family, str(k)) for family in FAMILIES for k in family.values]
    random.Random(f"{seed}/code").shuffle(functions)
    for family, k in functions:
        name, says = family.name.format(k=k), family.says.format(k=k)
        source = f"def {name}(x):\n    {family.solution.replace('{k}', k)}\n"
        cases = _cases(family, _compiled(source, name), random.Random(f"{seed}/{name}"))
        for kind in kinds:
            if kind == "stdio" and isinstance(cases[0][1], list):
                continue
            yield _asked(kind, family, name, says, source, cases) | {
                "entry_point": "" if kind == "stdio" else name,
                "kind": kind,
                "family": family.name,
                "level": family.level,
            }


def _asked(
    kind: str, family: Family, name: str, says: str, source: str, cases: list[tuple[Any, Any]]
) -> dict[str, Any]:
    """Prompt, answer and tests of one function in one format."""
    # Any 13 words in a row of a prompt hold what tells it from the others: by template alone, the contamination check
    # would drop the held-out ones.
    if kind == "stdio":
        return {
            "prompt": f"Print {says}, in Python: x is {_GIVEN[family.takes]}.",
            "answer": f"{source}\nx = {_READ[family.takes]}\nprint({name}(x))\n",
            "tests": {"inputs": [_line(x) for x, _ in cases], "outputs": [_line(value) for _, value in cases]},
        }
    if kind == "calls":
        prompt = f"Write a Python function {name}(x) that returns {says}."
        tests: Any = {"fn_name": name, "inputs": [[x] for x, _ in cases], "outputs": [value for _, value in cases]}
    elif kind == "asserts":
        prompt = f"Python function {name}(x): {says}."
        tests = [f"assert {name}({x!r}) == {value!r}" for x, value in cases]
    else:
        prompt = f'def {name}(x):\n    """Return {says}."""'
        checks = "".join(f"    assert candidate({x!r}) == {value!r}\n" for x, value in cases)
        tests = {"test": f"def check(candidate):\n{checks}", "entry_point": name}
    return {"prompt": prompt, "answer": source, "tests": tests}


def _compiled(source: str, name: str) -> Callable[[Any], Any]:
    """The reference solution as a function. It is this package's own text, not a model's."""
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    return namespace[name]


def _cases(family: Family, solve: Callable[[Any], Any], draw: random.Random) -> list[tuple[Any, Any]]:
    """Arguments and results; neither a constant nor the argument itself passes them all."""
    for _ in range(_DRAWS):
        arguments: list[Any] = []
        while len(arguments) < CASES:
            argument = _argument(family.takes, draw)
            if argument not in arguments:
                arguments.append(argument)
        results = [solve(argument) for argument in arguments]
        if any(value != results[0] for value in results) and results != arguments:
            return list(zip(arguments, results, strict=True))
    raise AssertionError(f"{family.name}: no {CASES} arguments whose results differ in {_DRAWS} draws")


def _argument(takes: Takes, draw: random.Random) -> Any:
    if takes == "int":
        return draw.randrange(-20, 100)
    if takes == "text":
        return " ".join(draw.sample(_WORDS, draw.randrange(1, 4)))
    return [draw.randrange(-5, 60) for _ in range(draw.randrange(3, 8))]


def _line(value: Any) -> str:
    """A value as a line of input or output."""
    return " ".join(map(str, value)) + "\n" if isinstance(value, list) else f"{value}\n"
