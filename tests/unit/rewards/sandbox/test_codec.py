import collections
import enum
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from funicular.rewards.sandbox import codec

_SURROGATES = st.text(st.characters(categories=["Cs", "Lu"]))
_HASHABLE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | _SURROGATES
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
_PLAIN = st.recursive(
    _HASHABLE | st.builds(bytearray, st.binary()) | st.builds(range, st.integers(), st.integers(), st.integers(1)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(_HASHABLE, inner, max_size=4)
        | st.sets(_HASHABLE, max_size=4)
    ),
    max_leaves=20,
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*"ifbytszducrhx"]) | st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=20,
)


def crossed(value: object) -> object:
    return codec.decode(codec.loads(codec.dumps(codec.encode(value))))


def same(one: object, other: object) -> bool:
    """Equal, and of the same types all the way down."""
    return typed(one) == typed(other)


def typed(value: object) -> object:
    if isinstance(value, (set, frozenset)):
        return type(value), sorted(map(repr, map(typed, value)))
    if isinstance(value, dict):
        return dict, [(typed(key), typed(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [typed(item) for item in value]
    return type(value), repr(value)


@given(_PLAIN)
def test_plain_data_arrives_as_it_was_sent(value: object) -> None:
    assert same(crossed(value), value)


@given(_JSON)
def test_any_json_is_decoded_or_refused_with_a_value_error(data: object) -> None:
    try:
        value = codec.decode(codec.loads(json.dumps(data).encode()))
    except ValueError:
        return
    assert same(crossed(value), value)


@given(st.binary(max_size=50))
def test_any_bytes_are_read_or_refused_with_a_value_error(line: bytes) -> None:
    try:
        codec.loads(line)
    except ValueError:
        return
    json.loads(line)


def test_not_a_number_and_infinity_cross() -> None:
    nan, infinity, negative = crossed([math.nan, math.inf, -math.inf])
    assert math.isnan(nan)
    assert (infinity, negative) == (math.inf, -math.inf)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.int64(3), 3),
        (np.float64(0.5), 0.5),
        (np.bool_(True), True),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        ([np.float32(0.5)], [0.5]),
        (collections.deque([1, (2,)]), [1, (2,)]),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.defaultdict(list, a=[1]), {"a": [1]}),
    ],
)
def test_arrays_and_collections_cross_as_plain_data(value: object, plain: object) -> None:
    assert same(crossed(value), plain)


class AlwaysEqual(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


class Text(str):
    __slots__ = ()


class Items(list):
    pass


Point = collections.namedtuple("Point", "x y")


class Lies(collections.namedtuple("Lies", "x y")):
    __slots__ = ()
    __eq__ = lambda self, other: True  # noqa: E731
    __hash__ = tuple.__hash__
    __iter__ = lambda self: iter("ab")  # noqa: E731
    __getitem__ = lambda self, index: 3  # noqa: E731


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 10**20


class Access(enum.IntFlag):
    READ = 1
    WRITE = 2


class Name(enum.StrEnum):
    RED = "red"


class OldName(str, enum.Enum):  # noqa: UP042  (as programs write it)
    RED = "red"

    def __str__(self) -> str:
        return "blue"


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Point(1, [Point("a", None)]), (1, [("a", None)])),
        (Lies(1, 2), (1, 2)),
        ({Point(1, 2): Level.LOW}, {(1, 2): 1}),
        ([Level.LOW, Level.HIGH], [1, 10**20]),
        (Access.READ | Access.WRITE, 3),
        ((Name.RED, OldName.RED), ("red", "red")),
    ],
)
def test_named_tuples_and_members_with_a_value_cross_as_plain_data(value: object, plain: object) -> None:
    assert same(crossed(value), plain)


def test_named_tuples_and_members_are_referred_to_where_their_owner_keeps_them() -> None:
    def refer(value: object) -> object:
        if type(value) is not Point:
            raise codec.NotPlain(type(value).__name__)
        return 7

    assert codec.encode([Point(1, 2), Level.LOW], refer) == [{"h": 7}, 1]
    with pytest.raises(codec.NotPlain, match="Colour"):
        codec.encode([Colour.RED], refer)


@pytest.mark.parametrize("value", [AlwaysEqual(3), Text("a"), Items(), Colour.RED, object(), len, int, iter([])])
def test_an_object_of_another_class_never_passes_for_plain_data(value: object) -> None:
    for held in (value, [value], {"k": value}, (1, [value])):
        with pytest.raises(codec.NotPlain, match="is no plain data"):
            codec.encode(held)


def test_a_list_that_holds_itself_is_refused() -> None:
    endless: list[object] = [1]
    endless.append(endless)
    with pytest.raises(codec.NotPlain, match="nested deeper than 80"):
        codec.encode(endless)


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: {"k": inner}, lambda inner: (inner,)])
def test_the_deepest_value_that_is_encoded_can_be_read(wrap: object) -> None:
    value: object = [1.5]
    for _ in range(codec.MAX_DEPTH - 1):
        value = wrap(value)  # type: ignore[operator]
    assert same(crossed(value), value)
    with pytest.raises(codec.NotPlain):
        codec.encode(wrap(wrap(value)))  # type: ignore[operator]


def test_integers_cross_up_to_4300_digits() -> None:
    largest = 10**4300 - 1
    assert crossed([largest, -largest]) == [largest, -largest]
    with pytest.raises(codec.NotPlain, match="bits"):
        codec.encode(10**4301)


@pytest.mark.parametrize(
    "line",
    [
        b"1" * 21,
        b"[1" + b"0" * 1_000_000 + b"]",
        b"1.5",
        b"1e9999999",
        b"NaN",
        b"[Infinity]",
        b"\xff",
        b'{"a":1',
        b"1 2",
        b"",
        b"[" * 1000 + b"]" * 1000,
        b'{"a":' * 500 + b"1" + b"}" * 500,
        b"[" * (codec.MAX_LINE_BYTES - 1),
        b'"' + b"a" * codec.MAX_LINE_BYTES + b'"',
    ],
)
def test_a_line_that_encode_never_writes_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        codec.loads(line)


@pytest.mark.parametrize("text", ["[" * 5000, '"\\' * 3000, "\\[{" * 2000])
def test_brackets_inside_strings_do_not_count_as_nesting(text: str) -> None:
    assert crossed([text, [text]]) == [text, [text]]


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"t": [1], "s": [2]},
        {"x": [1]},
        {"h": 1},
        {"t": 3},
        {"t": "abc"},
        {"d": ["ab"]},
        {"d": [[1, 2, 3]]},
        {"d": [[1, 2], [1, 3]]},
        {"s": [1, 1]},
        {"s": [[1]]},
        {"d": [[{"s": [1]}, 2]]},
        {"i": "0x" + "f" * 3600},
        {"i": 5},
        {"i": "five"},
        {"f": "1" * 100},
        {"f": "0x1p+99999"},
        {"b": "0"},
        {"u": "ff"},
        {"c": ["0x1p+0"]},
        {"c": [1, 2]},
        {"r": [1, 2]},
        {"r": [1, 2, 0]},
        {"r": ["1", 2, 3]},
        {"r": [True, 2, 3]},
        1.5,
    ],
)
def test_data_that_encode_never_makes_is_refused(data: object) -> None:
    for held in (data, [data], {"t": [data]}):
        with pytest.raises(ValueError, match=r"\w"):
            codec.decode(held)


def test_a_set_whose_elements_share_one_hash_is_refused() -> None:
    period = 2**61 - 1  # hash(k * period) is 0 for all of these
    colliding = [codec.encode(k * period) for k in range(1, 1000)]
    for data in ({"s": colliding}, {"z": colliding}, {"d": [[key, 1] for key in colliding]}):
        with pytest.raises(ValueError, match="share a hash"):
            codec.decode(data)


def test_a_message_above_the_cap_is_not_sent() -> None:
    with pytest.raises(codec.NotPlain, match="bytes"):
        codec.dumps("a" * codec.MAX_LINE_BYTES)


def test_a_line_has_no_newline_whatever_it_holds() -> None:
    assert b"\n" not in codec.dumps(codec.encode(["\n\r\u2028", {"\n": b"\n"}]))


def test_what_is_decoded_shares_nothing_with_the_data() -> None:
    data = [1, 2, [3]]
    value = codec.decode(data)
    value.append(4)
    value[2].append(5)
    assert data == [1, 2, [3]]


def test_a_reference_stands_for_an_object_where_both_sides_agree() -> None:
    thing = object()
    data = codec.encode([1, thing], lambda value: 7)
    assert data == [1, {"h": 7}]
    assert codec.decode(data, {7: thing}.__getitem__) == [1, thing]


@pytest.mark.parametrize("unit", [b'\\\\"', b'\\"', b"\\", b'"'])
def test_a_line_made_to_be_slow_to_measure_is_measured(unit: bytes) -> None:
    """Quadratic work on it would take a day."""
    line = b"[" * 201 + b'"' + unit * (codec.MAX_LINE_BYTES // len(unit) - 400)
    with pytest.raises(ValueError):  # noqa: PT011 - which one depends on where it stops being JSON
        codec.loads(line)


def test_keys_that_share_one_path_through_a_table_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_MOST_HASHING_S", 0.0)
    with pytest.raises(ValueError, match="takes more than 0 s to fill"):
        codec.decode({"d": [[key, 0] for key in range(5000)]})
    with pytest.raises(ValueError, match="takes more than 0 s to fill"):
        codec.decode({"s": list(range(5000))})
