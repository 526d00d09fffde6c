"""Formats: the tests of real data sets' rows become test sets, and everything else an error that helps."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from typing import Any

import pytest

from funicular.rewards.sandbox import types
from funicular.rewards.sandbox.formats import parse_tests
from funicular.rewards.sandbox.types import CallCase, CallTests, Comparison, StdioCase, StdioTests

TWO_CASES = (StdioCase(stdin="1 2\n", stdout="3\n"), StdioCase(stdin="2 2\n", stdout="4\n"))


@pytest.mark.parametrize(
    "raw",
    [
        {"inputs": ["1 2\n", "2 2\n"], "outputs": ["3\n", "4\n"]},
        {"inputs": ["1 2\n", "2 2\n"], "outputs": ["3\n", "4\n"], "fn_name": None},
        [{"input": "1 2\n", "output": "3\n"}, {"input": "2 2\n", "output": "4\n"}],
        [{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "2 2\n", "stdout": "4\n"}],
        [["1 2\n", "3\n"], ["2 2\n", "4\n"]],
        [("1 2\n", "3\n"), ("2 2\n", "4\n")],
        [
            {"input": "1 2\n", "output": "3\n", "testtype": "stdin", "metadata": {"func_name": None}},
            {"input": "2 2\n", "output": "4\n", "testtype": "stdin", "metadata": {"func_name": None}},
        ],
        [
            {"type": "stdin_stdout", "input": "1 2\n", "output": "3\n", "fn_name": None},
            {"type": "stdin_stdout", "input": "2 2\n", "output": "4\n", "fn_name": None},
        ],
        {
            "language": "python",
            "test_cases": [
                {"type": "stdin_stdout", "input": "1 2\n", "output": "3\n"},
                {"type": "stdin_stdout", "input": "2 2\n", "output": "4\n"},
            ],
        },
    ],
)
def test_standard_input_and_output_are_read_in_every_spelling(raw: Any) -> None:
    assert parse_tests(raw) == StdioTests(cases=TWO_CASES)
    assert parse_tests(json.dumps(raw)) == StdioTests(cases=TWO_CASES)
    assert parse_tests(json.dumps(json.dumps(raw))) == StdioTests(cases=TWO_CASES)


def test_lists_of_lines_and_numbers_are_text() -> None:
    tests = parse_tests({"inputs": [["3", "1 2 3"], 5], "outputs": [["6"], 7]})
    assert tests == StdioTests(cases=(StdioCase(stdin="3\n1 2 3", stdout="6"), StdioCase(stdin="5", stdout="7")))


def test_a_function_name_makes_calls() -> None:
    tests = parse_tests({"fn_name": "add", "inputs": [[1, [2]], [3, [4]]], "outputs": [3, 7]})
    cases = (CallCase(arguments=(1, [2]), expected=3), CallCase(arguments=(3, [4]), expected=7))
    assert tests == CallTests(function="add", cases=cases)


def test_results_that_are_all_wrapped_may_be_right_either_way() -> None:
    tests = parse_tests({"fn_name": "f", "inputs": [[1], [2]], "outputs": [[3], [[7]]]})
    assert isinstance(tests, CallTests)
    assert tests.comparison.unwrap_expected
    mixed = parse_tests({"fn_name": "f", "inputs": [[1], [2]], "outputs": [[3], [7, 8]]})
    assert isinstance(mixed, CallTests)
    assert not mixed.comparison.unwrap_expected


def test_integer_keys_that_json_made_text_are_integers_again() -> None:
    tests = parse_tests({"fn_name": "f", "inputs": [[{"1": "a", "-2": "b"}], [{"1": 1, "x": 2}]], "outputs": [1, 2]})
    assert isinstance(tests, CallTests)
    assert [case.arguments for case in tests.cases] == [({1: "a", -2: "b"},), ({"1": 1, "x": 2},)]


def test_livecodebench_calls_have_one_json_value_per_line() -> None:
    raw = [{"input": '[1, 2]\n"x"', "output": "[2, 1]", "testtype": "functional"}]
    expected = CallTests(function="swap", cases=(CallCase(arguments=([1, 2], "x"), expected=[2, 1]),))
    assert parse_tests(raw, metadata={"func_name": "swap"}) == expected
    assert parse_tests(json.dumps(raw), metadata='{"func_name": "swap"}') == expected
    assert parse_tests([raw[0] | {"metadata": '{"func_name": "swap"}'}], format="livecodebench") == expected
    row = {"public_test_cases": json.dumps(raw), "private_test_cases": "", "metadata": '{"func_name": "swap"}'}
    assert parse_tests(row) == expected


def test_public_and_private_cases_of_livecodebench_are_all_used() -> None:
    public = [{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]
    private = [{"input": "2 2\n", "output": "4\n", "testtype": "stdin"}]
    row = {"public_test_cases": json.dumps(public), "private_test_cases": json.dumps(private), "metadata": "{}"}
    assert parse_tests(row) == StdioTests(cases=TWO_CASES)


def test_pickled_tests_are_refused_and_never_loaded(tmp_path: Any) -> None:
    mark = tmp_path / "mark"

    class Bomb:
        def __reduce__(self) -> Any:
            return mark.touch, ()

    encoded = base64.b64encode(zlib.compress(pickle.dumps(Bomb()))).decode()
    for raw in (encoded, {"public_test_cases": "[]", "private_test_cases": encoded}):
        with pytest.raises(ValueError, match="decode them to JSON"):
            parse_tests(raw)
    assert not mark.exists()


def test_primeintellect_calls_name_their_function() -> None:
    raw = [{"type": "function_call", "fn_name": "f", "input": [1, 2], "output": [3]}]
    tests = parse_tests(raw)
    assert tests == CallTests(
        function="f", cases=(CallCase(arguments=(1, 2), expected=[3]),), comparison=Comparison(unwrap_expected=True)
    )


CHECK = "def check(candidate):\n    assert candidate(1) == helper(1)\n"
PROMPT = "def helper(x):\n    return x\n\ndef f(x):\n    '''Return x.'''\n"


def test_humaneval_rows_bring_the_prompts_helpers_along() -> None:
    expected = types.TesterTests(style=types.TesterStyle.HUMANEVAL, source=CHECK, prelude=PROMPT, entry_point="f")
    assert parse_tests({"test": CHECK, "entry_point": "f", "prompt": PROMPT}) == expected
    assert parse_tests(CHECK, entry_point="f", prompt=PROMPT) == expected
    assert parse_tests(CHECK, format="humaneval", entry_point="f", prompt=PROMPT) == expected
    without = parse_tests({"test": CHECK, "entry_point": "f"})
    assert isinstance(without, types.TesterTests)
    assert without.prelude == ""


def test_mbpp_rows_keep_their_set_up() -> None:
    asserts = ["assert f(1) == 1", "assert f(2) == 4"]
    bare = types.TesterTests(style=types.TesterStyle.ASSERTS, source="", statements=tuple(asserts))
    assert parse_tests(asserts) == bare
    assert parse_tests(json.dumps(asserts)) == bare
    assert parse_tests({"test_list": asserts, "test_setup_code": "x = 1"}) == parse_tests(asserts, setup="x = 1")
    with_imports = parse_tests({"test_list": asserts, "test_imports": ["import math", "import re"]})
    assert isinstance(with_imports, types.TesterTests)
    assert with_imports.source.split() == ["import", "math", "import", "re"]


def test_a_source_of_asserts_is_cut_after_each_of_them() -> None:
    tests = parse_tests("import math\nx = f(1)\nassert x == 1\nx = f(2)\nassert x == math.tau\n")
    assert isinstance(tests, types.TesterTests)
    assert tests.statements == ("import math\nx = f(1)\nassert x == 1", "x = f(2)\nassert x == math.tau")


UNITTEST = (
    "import unittest\nfrom solution import f\nclass T(unittest.TestCase):\n    def test_f(self):\n        "
    "self.assertEqual(f(1), 1)\n"
)
PYTEST = '"""A file."""\nfrom solution import f\ndef test_f():\n    assert f(1) == 1\n'


@pytest.mark.parametrize(
    ("source", "style"),
    [
        (UNITTEST, types.TesterStyle.UNITTEST),
        (PYTEST, types.TesterStyle.PYTEST),
        ("class TestF:\n    def test_one(self): assert 1\n", types.TesterStyle.PYTEST),
        ("from unittest import TestCase\nclass T(TestCase): pass\n", types.TesterStyle.UNITTEST),
    ],
)
def test_files_of_tests_are_told_apart(source: str, style: types.TesterStyle) -> None:
    assert parse_tests(source) == types.TesterTests(style=style, source=source)
    assert parse_tests(source, format=style.value) == types.TesterTests(style=style, source=source)


def test_the_comparison_reaches_the_tests() -> None:
    comparison = Comparison(tolerance=1e-6, ignore_case=True)
    assert parse_tests([["1", "2"]], comparison=comparison) == StdioTests(
        cases=(StdioCase(stdin="1", stdout="2"),), comparison=comparison
    )


def test_running_in_the_candidates_process_must_be_asked_for() -> None:
    for raw in (UNITTEST, PYTEST, ["assert f(1)"], {"test": CHECK, "entry_point": "f"}):
        split, weak = parse_tests(raw), parse_tests(raw, same_process=True)
        assert isinstance(split, types.TesterTests)
        assert isinstance(weak, types.TesterTests)
        assert (split.same_process, weak.same_process) == (False, True)


@pytest.mark.parametrize(
    ("raw", "options", "said"),
    [
        ("", {}, "tests: got str"),
        ("[]", {}, "expected test cases"),
        ([], {}, "expected test cases"),
        (None, {}, "expected test cases"),
        (5, {}, "got int 5"),
        ({}, {}, "expected test cases"),
        ({"input": [], "output": []}, {}, "keys ['input', 'output']"),
        ({"inputs": [], "outputs": []}, {}, "tests.inputs: got list []; expected a list with at least one"),
        ({"inputs": "x", "outputs": ["y"]}, {}, "tests.inputs: got str"),
        ({"inputs": ["1"], "outputs": ["1", "2"]}, {}, "1 inputs but 2 outputs"),
        ({"inputs": [{"a": 1}], "outputs": ["1"]}, {}, "tests: input 0"),
        ({"inputs": ["1"], "outputs": [None]}, {}, "tests: output 0"),
        ({"inputs": [5], "outputs": [1], "fn_name": "f"}, {}, "a list of arguments"),
        ({"inputs": ["x"], "outputs": ["1"], "fn_name": "f"}, {}, "expected a JSON value"),
        ({"inputs": [[1]], "outputs": [1], "fn_name": "a.b"}, {}, "the name of a function"),
        ([{"input": "1"}], {}, "one of output, stdout"),
        ([{"input": "1", "output": "1", "testtype": "other"}], {}, "type 'other'"),
        (
            [{"input": "1", "output": "1", "type": "stdin"}, {"input": "1", "output": "1", "type": "functional"}],
            {},
            "one kind per task",
        ),
        ([{"input": "1", "output": "1", "testtype": "functional"}], {}, "func_name"),
        ([["1", "2", "3"]], {}, "tests[0]"),
        ("{not json", {}, "no JSON"),
        ("not code !", {}, "no Python source"),
        ("x = 1\ny = 2\n", {}, "assert statements"),
        (["x = 1"], {}, "tests[0]"),
        (["assert ("], {}, "tests[0]: no Python"),
        ({"test": "x = 1", "entry_point": "f"}, {}, "check(candidate)"),
        ({"test": CHECK, "entry_point": ""}, {}, "candidate's function"),
        (CHECK, {"format": "humaneval"}, "candidate's function"),
        (CHECK, {"format": "humaneval", "entry_point": "f", "prompt": "Write f, please"}, "tests.prompt"),
        ("x = 1", {"format": "pytest"}, "a function test_*"),
        ("x = 1", {"format": "unittest"}, "TestCase"),
        ([["1", "2"]], {"format": "stdout"}, "nearest: stdio"),
    ],
)
def test_what_is_no_test_set_is_refused_with_what_was_expected(raw: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="tests") as refused:
        parse_tests(raw, **options)
    assert said in str(refused.value)


def test_errors_name_the_rows_column() -> None:
    with pytest.raises(ValueError, match=r"row 7: column input_output: got"):
        parse_tests(None, name="row 7: column input_output")
