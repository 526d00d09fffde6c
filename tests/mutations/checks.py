"""Runs named tests of a copied module in this process: parameters are filled in, the first failure ends it."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mutations.copies import ChangedCopy


def failure_of(copy: ChangedCopy, check: str) -> str | None:
    """Why a check fails in a copy; None: it passes.

    Args:
        check: test_module::test_name of tests/unit/actors, and in brackets a word that a case's parameters must hold:
            only such cases run.
    """
    place, _, word = check.removesuffix("]").partition("[")
    file, _, name = place.partition("::")
    function = getattr(copy.module(f"tests.unit.actors.{file}"), name)
    chosen = [case for case in _cases(function) if word in " ".join(map(str, case.values()))]
    if not chosen:
        raise LookupError(f"{check}: no such case")
    for case in chosen:
        try:
            _run(function, case)
        except (Exception, pytest.fail.Exception) as error:  # whatever it is: the check did not pass
            return f"{type(error).__name__}"
    return None


def _run(function: Callable[..., Any], case: dict[str, Any]) -> None:
    if "tmp_path" in function.__code__.co_varnames[: function.__code__.co_argcount]:
        with tempfile.TemporaryDirectory() as folder:
            function(tmp_path=Path(folder), **case)
    else:
        function(**case)


def _cases(function: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """Arguments of each case that `pytest.mark.parametrize` makes."""
    axes = []
    for mark in getattr(function, "pytestmark", []):
        if mark.name != "parametrize":
            continue
        names, values = mark.args[:2]
        if isinstance(names, str):
            names = [name.strip() for name in names.split(",")]
            if len(names) == 1:
                values = [(value,) for value in values]
        axes.append([dict(zip(names, value, strict=True)) for value in values])
    for choice in itertools.product(*axes):
        yield {name: value for part in choice for name, value in part.items()}
