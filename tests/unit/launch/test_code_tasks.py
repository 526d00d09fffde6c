"""The embedded code tasks: their tests are right, and nothing but a solution passes them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from funicular.launch.code_families import FAMILIES
from funicular.launch.code_tasks import FORMATS, code_rows
from funicular.launch.config import DataConfig
from funicular.launch.contamination import contaminated
from funicular.launch.tasks import load_tasks

ALL = code_rows(None, 10_000, 0)


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [row for row in ALL if row["kind"] == kind]


def defined(row: dict[str, Any]) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    exec(row["answer"], namespace)
    return namespace


def test_the_seed_decides_rows_and_tests() -> None:
    assert code_rows(None, 100, 3) == code_rows(None, 100, 3)
    assert code_rows(None, 100, 3) != code_rows(None, 100, 4)
    assert len({row["prompt"] for row in ALL}) == len(ALL)


def test_every_kind_has_hundreds_of_tasks_and_every_family_is_there() -> None:
    assert min(Counter(row["kind"] for row in ALL).values()) > 200
    assert {row["family"] for row in ALL} == {family.name for family in FAMILIES}
    assert {row["kind"] for row in code_rows("stdio, calls", 50, 0)} == {"stdio", "calls"}
    assert len(code_rows(None, 5, 0)) == 5


def test_the_reference_passes_its_calls_asserts_and_check() -> None:
    for row in of_kind("calls"):
        tests, function = row["tests"], defined(row)[row["entry_point"]]
        assert [function(*arguments) for arguments in tests["inputs"]] == tests["outputs"]
    for row in of_kind("asserts"):
        exec("\n".join(row["tests"]), defined(row))
    for row in of_kind("humaneval"):
        tester: dict[str, Any] = {}
        exec(row["tests"]["test"], tester)
        tester["check"](defined(row)[row["entry_point"]])


def test_the_reference_program_prints_what_is_expected() -> None:
    by_family = {row["family"]: row for row in of_kind("stdio")}
    code = "import sys, json\nfor source, lines in json.load(sys.stdin):\n  for line in lines:\n"
    code += "    input = lambda: line.rstrip('\\n')\n    exec(source, {'input': input})\n"
    given = json.dumps([[row["answer"], row["tests"]["inputs"]] for row in by_family.values()])
    done = subprocess.run(
        [sys.executable, "-c", code], input=given, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "".join(line for row in by_family.values() for line in row["tests"]["outputs"])


def test_neither_a_constant_nor_the_argument_passes() -> None:
    for row in of_kind("calls"):
        tests = row["tests"]
        assert any(output != tests["outputs"][0] for output in tests["outputs"])
        assert [[output] for output in tests["outputs"]] != tests["inputs"]
        assert len(tests["inputs"]) == len({repr(arguments) for arguments in tests["inputs"]}) == 6


def test_no_prompt_gives_another_away() -> None:
    prompts = [row["prompt"] for row in ALL]
    for index in range(0, len(prompts), 97):
        assert contaminated(prompts[:index] + prompts[index + 1 :], [prompts[index]]) == []


def test_the_default_recipe_values_load_with_every_kind_held_out() -> None:
    config = DataConfig(path="code", held_out_fraction=0.1)
    tasks = load_tasks(config, "exact_text", 0)  # any verifier that reads text: the sandbox's has tests of its own
    assert {task.columns["kind"] for task in tasks.held_out} == set(FORMATS)
    assert tasks.balance_column == "kind"


@pytest.mark.parametrize(("kinds", "message"), [("calls,asert", "nearest: asserts"), ("calls,calls", "twice")])
def test_wrong_kinds_are_errors(kinds: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        code_rows(kinds, 10, 0)
