"""Comparison: what equals what was expected, and what hostile output can do to the comparer."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funicular.rewards.sandbox.compare import same_stdout, same_value
from funicular.rewards.sandbox.types import Comparison

WITHIN_A_THOUSANDTH = Comparison(tolerance=1e-3)
UNORDERED = Comparison(unordered_lines=True)


@pytest.mark.parametrize(
    ("claimed", "expected"),
    [
        (b"", ""),
        (b"\n\n", ""),
        (b"12", "12\n"),
        (b"1 2\r\n3\r\n", "1 2\n3"),
        (b"a  \nb\t\n\n\n", "a\nb"),
        (b"1   2", "1 2"),
        (b"  indented", "indented"),
        (b"007", "7"),
        (b"+7", "7"),
        (b"-0", "0"),
        (b"-012", "-12"),
        (b"0" * 10 + b"9" * 10_000, "9" * 10_000),
        ("naïve ✓".encode(), "naïve ✓"),
        (b"inf", "inf"),
        (b"NaN", "NaN"),
        (b"\xef\xbb\xbfx", "\ufeffx"),
    ],
)
def test_these_outputs_are_the_same(claimed: bytes, expected: str) -> None:
    assert same_stdout(claimed, expected)


@pytest.mark.parametrize(
    ("claimed", "expected"),
    [
        (b"12", "13"),
        (b"", "0"),
        (b"0", ""),
        (b"\n12", "12"),
        (b"1\n\n2", "1\n2"),
        (b"1 2", "1\n2"),
        (b"12 ", "1 2"),
        (b"12.0", "12"),
        (b"1e1", "10"),
        (b"2.5", "2.50"),
        (b"-7", "7"),
        (b"7", "007"),
        (b"1", "0001"),
        (b"+", "0"),
        ("１２".encode(), "12"),
        ("٣".encode(), "3"),
        (b"1_000", "1000"),
        (b"0x10", "16"),
        (b"True", "true"),
        (b"\xff", "\xff"),
        (b"\xff12", "12"),
        ("12\u00a0".encode(), "12"),
        ("a\u2028b".encode(), "a\nb"),
        (b"12\x00", "12"),
        (b"\xed\xa0\x80", "\ud800"),
        (b"1" * 5000, "2" * 5000),
    ],
)
def test_these_outputs_differ(claimed: bytes, expected: str) -> None:
    assert not same_stdout(claimed, expected)


@pytest.mark.parametrize(
    ("claimed", "expected", "same"),
    [
        (b"3.1415", "3.1416", True),
        (b"3.13", "3.1416", False),
        (b"31415.9", "31416.5", True),  # relative
        (b"1e-5", "0.0", True),
        (b".5", "0.5", True),
        (b"5E-1", "0.5", True),
        (b"nan", "0.5", False),
        (b"nan", "1.0", False),
        (b"inf", "1e300", False),
        (b"1e9999", "2e9999", False),
        (b"1e400", "1e399", False),
        (b"1_0.0", "10.0", False),
        ("１.０".encode(), "1.0", False),
        (b"8", "7", False),  # integers stay exact
        (b"1000001", "1000000", False),
        (b"3.0", "3", True),
        (b"3.0005", "3", True),
        (b"3.01", "3", False),
        (b"1000000.5", "1000000", False),  # a decimal buys no relative tolerance for an integer
        (b"9007199254740993.0", "9007199254740992", False),
        (b"3", "3.0", True),
        (b"0." + b"0" * 1000 + b"1", "0.0", False),  # longer than any number
    ],
)
def test_a_declared_tolerance_is_for_decimals(claimed: bytes, expected: str, same: bool) -> None:
    assert same_stdout(claimed, expected, WITHIN_A_THOUSANDTH) is same


def test_case_matters_unless_it_is_declared_not_to() -> None:
    assert not same_stdout(b"YES", "Yes")
    assert same_stdout(b"YES\nno", "Yes\nNo", Comparison(ignore_case=True))
    assert not same_stdout(b"YES\nyes", "Yes\nNo", Comparison(ignore_case=True))


def test_lines_may_come_in_any_order_only_where_that_is_declared() -> None:
    assert not same_stdout(b"b\na", "a\nb")
    assert same_stdout(b"b 02\na 1", "a 1\nb 2", UNORDERED)
    assert not same_stdout(b"a\na", "a\nb", UNORDERED)
    assert not same_stdout(b"a\nb\nb", "a\na\nb", UNORDERED)
    assert same_stdout(b"2.0001\n1.0001", "1\n2", Comparison(unordered_lines=True, tolerance=1e-3))
    assert not same_stdout(b"2.0001\n2.0001", "1\n2", Comparison(unordered_lines=True, tolerance=1e-3))


@pytest.mark.parametrize(
    ("claimed", "expected"),
    [
        (None, None),
        (3, 3),
        (3.0, 3),
        (3, 3.0),
        (10**400, 10**400),
        ((1, 2), [1, 2]),
        ([(1, 2), (3,)], [[1, 2], [3]]),
        ({1: "a"}, {"1": "a"}),
        ({True: 1, None: 2, 1.5: 3}, {"true": 1, "null": 2, "1.5": 3}),
        ({(1, 2): [3]}, {(1, 2): (3,)}),
        ({3, 1, 2}, [1, 2, 3]),
        ({3, 1, 2}, frozenset({1, 2, 3})),
        ({(2, 1), (1, 2)}, [[1, 2], [2, 1]]),
        ([], ()),
        ({}, {}),
        (b"x", b"x"),
        (1 + 2j, 1 + 2j),
        (math.inf, math.inf),
        (range(3), range(3)),
    ],
)
def test_these_values_are_the_same(claimed: Any, expected: Any) -> None:
    assert same_value(claimed, expected)


@pytest.mark.parametrize(
    ("claimed", "expected"),
    [
        (True, 1),
        (1, True),
        (False, 0),
        (0, None),
        (False, None),
        ([], None),
        ("", None),
        ("1", 1),
        (1, "1"),
        (b"x", "x"),
        (math.nan, math.nan),
        ([math.nan], [math.nan]),
        (0.1 + 0.2, 0.3),
        (2**53 + 1, float(2**53)),
        ([1, 2, 3], [1, 2]),
        ([2, 1], [1, 2]),
        ({1, 2}, [2, 1]),
        ([1, 1], {1}),
        ({1: "a", "1": "a"}, {"1": "a"}),
        ({1: "a", "1": "b"}, {"1": "a", "2": "b"}),
        ({"a": 1}, {"a": True}),
        ({"a": 1}, [["a", 1]]),
        ("ab", ["a", "b"]),
        (1 + 0j, 1),
        (range(3), [0, 1, 2]),
        ([1], 1),
        (1, [1]),
    ],
)
def test_these_values_differ(claimed: Any, expected: Any) -> None:
    assert not same_value(claimed, expected)


def test_a_tolerance_is_for_floats_among_values() -> None:
    assert same_value([0.5004], [0.5], WITHIN_A_THOUSANDTH)
    assert same_value(3.0004, 3, WITHIN_A_THOUSANDTH)
    assert same_value(3, 3.0004, WITHIN_A_THOUSANDTH)
    assert not same_value(1_000_001, 1_000_000, WITHIN_A_THOUSANDTH)
    assert not same_value(1_000_001.0, 1_000_000, WITHIN_A_THOUSANDTH)
    assert not same_value(math.nan, 0.5, WITHIN_A_THOUSANDTH)
    assert not same_value(math.inf, 1e308, WITHIN_A_THOUSANDTH)
    assert not same_value(10**400, 1e308, WITHIN_A_THOUSANDTH)
    assert not same_value(True, 1.0, WITHIN_A_THOUSANDTH)


def test_the_outermost_list_may_come_in_any_order_only_where_that_is_declared() -> None:
    assert same_value([[2, 1], (0,), "a", None], ["a", None, [0], [2, 1]], UNORDERED)
    assert not same_value([[1, 2], [0]], [[0], [2, 1]], UNORDERED)
    assert not same_value([1, 1, 2], [1, 2, 2], UNORDERED)


def test_an_expected_list_of_one_element_can_be_declared_a_wrapping() -> None:
    wrapped = Comparison(unwrap_expected=True)
    assert same_value(5, [5], wrapped)
    assert same_value([5], [5], wrapped)
    assert same_value([1, 2], [[1, 2]], wrapped)
    assert not same_value(5, [[5]], wrapped)
    assert not same_value([5], 5, wrapped)
    assert not same_value(5, [5, 5], wrapped)


def test_case_is_ignored_in_texts_of_values_but_not_in_keys() -> None:
    ignoring = Comparison(ignore_case=True)
    assert same_value({"k": ["YES", {"No"}]}, {"k": ["yes", ["no"]]}, ignoring)
    assert not same_value({"K": 1}, {"k": 1}, ignoring)
    assert same_value({("A", "b"): "X"}, {("A", "b"): "x"}, ignoring)


def test_values_nested_too_deep_are_not_equal() -> None:
    nested: Any = 1
    for _ in range(5000):
        nested = [nested]
    for comparison in (Comparison(), UNORDERED, Comparison(ignore_case=True)):
        assert not same_value(nested, [[[1]]], comparison)
        assert not same_value(nested, nested, comparison)


@pytest.mark.timeout(120)
def test_output_made_to_be_slow_to_compare_is_compared() -> None:
    """Quadratic work would take more than a minute for each."""
    size = 1 << 18
    for claimed in (
        b"\n" * size,
        b" " * size,
        b"1 " * (size // 2),
        b"9" * size,
        b"0" * size,
        b"1." + b"0" * size,
        b"\r\n" * (size // 2),
        b"a\n" * (size // 2),
        b"+" * size,
        b"1e" * (size // 2),
    ):
        for comparison in (Comparison(), WITHIN_A_THOUSANDTH, Comparison(unordered_lines=True, tolerance=0.1)):
            same_stdout(claimed, claimed[:-1].decode() + "x", comparison)
            assert same_stdout(claimed, claimed.decode(), comparison)


COMPARISONS = st.builds(
    Comparison,
    tolerance=st.sampled_from([0.0, 1e-6, 0.5]),
    ignore_case=st.booleans(),
    unordered_lines=st.booleans(),
    unwrap_expected=st.booleans(),
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=3)
    | st.complex_numbers()
    | st.builds(range, st.integers(0, 5), st.integers(0, 5))
)
KEYS = SCALARS | st.tuples(SCALARS, SCALARS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.sets(KEYS, max_size=4)
        | st.frozensets(KEYS, max_size=4)
    ),
    max_leaves=12,
)
NUMBER_LIKE = st.text(alphabet="0123456789+-.eE_ \t\n\rinfaN１", max_size=30)


def has_nan(value: Any) -> bool:
    if isinstance(value, dict):
        return any(has_nan(part) for item in value.items() for part in item)
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(has_nan, value))
    return value != value


def json_blurs_keys(value: Any) -> bool:
    if isinstance(value, dict):
        texts = [str(key).lower() for key in value]
        return len(set(texts)) < len(texts) or None in value or any(map(json_blurs_keys, value.values()))
    return isinstance(value, list | tuple) and any(map(json_blurs_keys, value))


@settings(deadline=None)
@given(claimed=st.binary(max_size=200), expected=NUMBER_LIKE | st.text(max_size=50), comparison=COMPARISONS)
def test_no_output_raises(claimed: bytes, expected: str, comparison: Comparison) -> None:
    assert same_stdout(claimed, expected, comparison) in (True, False)


@settings(deadline=None)
@given(text=NUMBER_LIKE | st.text(max_size=50), comparison=COMPARISONS)
def test_every_output_is_the_same_as_itself(text: str, comparison: Comparison) -> None:
    assert same_stdout(text.encode("utf-8", "replace"), text.encode("utf-8", "replace").decode(), comparison)


@settings(deadline=None)
@given(claimed=VALUES, expected=VALUES, comparison=COMPARISONS)
def test_no_value_raises(claimed: Any, expected: Any, comparison: Comparison) -> None:
    assert same_value(claimed, expected, comparison) in (True, False)


@settings(deadline=None)
@given(value=VALUES.filter(lambda value: not has_nan(value) and not json_blurs_keys(value)), comparison=COMPARISONS)
def test_every_value_without_nan_is_the_same_as_itself(value: Any, comparison: Comparison) -> None:
    assert same_value(value, value, comparison)


@settings(deadline=None)
@given(one=VALUES, other=VALUES, unordered=st.booleans())
def test_sameness_of_values_is_symmetric_without_a_tolerance(one: Any, other: Any, unordered: bool) -> None:
    comparison = Comparison(unordered_lines=unordered)
    assert same_value(one, other, comparison) == same_value(other, one, comparison)


@settings(deadline=None)
@given(integer=st.integers(), zeros=st.integers(0, 5), other=st.integers())
def test_integers_match_by_value_only(integer: int, zeros: int, other: int) -> None:
    sign = "-" if integer < 0 else ""
    claimed = f"{sign}{'0' * zeros}{abs(integer)}".encode()
    assert same_stdout(claimed, str(integer))
    assert same_stdout(claimed, str(other)) == (integer == other)
