"""Denial of service against the judge: replies and outputs that are dear to read, to keep or to compare."""

from __future__ import annotations

from funicular.rewards.sandbox.types import Outcome, TesterStyle, TestSet
from tests.sandbox.programs import DOUBLE, FAILURES, FORGING, HostileProgram, calls, code, judged_by, stdio

_CLAIM = frozenset({Outcome.WRONG, Outcome.PROTOCOL, Outcome.RUNTIME_ERROR})
_SLOW = _CLAIM | {Outcome.WALL, Outcome.CPU, Outcome.MEMORY}
_ONE = calls(((1,), 1))
_ASSERT_ONE = judged_by(TesterStyle.ASSERTS, "", "assert solve(1) == 1")
_ROWS = [[n, str(n)] for n in range(20_000)]
_MIXED = [x for i in range(5_000) for x in (i, str(i), None, [i], {"a": i}, 0.5)]
_LINES = "".join(f"{n}\n" for n in range(1, 10_001))
_COLLIDING = "b','.join(b'{\"i\":\"%s\"}' % hex(n * (2**61 - 1)).encode() for n in range(1, 100_000))"
_COLLIDING_PAIRS = "b','.join(b'[{\"i\":\"%s\"},0]' % hex(n * (2**61 - 1)).encode() for n in range(1, 90_000))"


def _claims(name: str, why: str, value: str, tests: TestSet = _ONE) -> HostileProgram:
    """Writes a reply whose value is the bytes of this expression."""
    source = f"""
    def solve(n):
        write(b'{{"id": %d, "value": ' % request_id() + {value} + b'}}\\n')
        os.read(4, 1)
    """
    return HostileProgram(name=name, why=why, source=FORGING + code(source), tests=tests, outcomes=_SLOW)


def _returns(name: str, why: str, body: str, tests: TestSet = _ONE) -> HostileProgram:
    lines = "".join(f"    {line}\n" for line in code(body).splitlines())
    source = f"{FORGING}\ndef solve(n):\n{lines}"
    return HostileProgram(name=name, why=why, source=source, tests=tests, outcomes=_SLOW)


def _prints(name: str, why: str, source: str, tests: TestSet = DOUBLE) -> HostileProgram:
    return HostileProgram(name=name, why=why, source=code(source), tests=tests, outcomes=FAILURES)


NUMBERS = (
    _claims("million_digits", "an integer of a million digits", "b'7' * 1_000_000"),
    _claims(
        "million_hex_digits",
        "the same in the codec's own form",
        "b'{\"i\": \"0x' + b'f' * 3_000_000 + b'\"}'",
    ),
    _claims("huge_float_text", "a float with a million digits", "b'{\"f\": \"' + b'1' * 1_000_000 + b'\"}'"),
    _claims("huge_exponent", "an exponent of a million digits", "b'1e' + b'9' * 1_000_000"),
    _claims("nan_on_the_channel", "NaN as JSON allows it", "b'NaN'"),
    _claims(
        "range_on_the_channel",
        "a range for whoever makes a list of it",
        "b'{\"r\": [0, 100000000000000000, 1]}'",
        calls(((1,), [1, 2, 3])),
    ),
    _returns("huge_int_returned", "returns 10 ** 10 ** 6", "return 10 ** 10 ** 6"),
    _returns("range_returned", "a range of 10^17 elements", "return range(10**17)", calls(((1,), [1, 2, 3]))),
)

DEPTHS = (
    _claims("deep_json", "JSON nested a hundred thousand times", "b'[' * 100_000 + b']' * 100_000"),
    _claims("deep_objects", "objects nested a hundred thousand times", "b'{\"t\":' * 100_000 + b'1' + b'}' * 100_000"),
    _claims("deep_tags", "tagged values nested beyond what is allowed", "b'{\"t\":[' * 120 + b'1' + b']}' * 120"),
    _claims("deep_open", "nested and never closed", "b'[' * 2_000_000"),
    _returns(
        "deep_list_returned",
        "a list nested a hundred thousand times",
        """
        x = []
        for _ in range(100_000):
            x = [x]
        return x
        """,
    ),
    _returns("list_in_itself", "a list that holds itself", "x = []\nx.append(x)\nreturn x"),
    _returns(
        "shared_lists",
        "a list whose text doubles with each of seventy levels",
        """
        x = [1]
        for _ in range(70):
            x = [x, x]
        return x
        """,
    ),
)

AMOUNTS = (
    _returns(
        "hundred_megabytes",
        "a line of 100 MB",
        """
        for _ in range(100):
            write(b'x' * (1 << 20))
        return 1
        """,
    ),
    _returns(
        "large_replies",
        "the largest lines that are allowed, for every call",
        "return 'x' * 4_000_000",
        calls(*(((n,), "y" * 4_000_000) for n in range(2))),
    ),
    _returns(
        "million_lines",
        "a million empty lines",
        """
        for _ in range(100):
            write(b'\\n' * 10_000)
        return 1
        """,
    ),
    _returns(
        "million_messages",
        "a million messages",
        """
        for _ in range(100):
            write(b'{}\\n' * 10_000)
        return 1
        """,
    ),
    _returns(
        "huge_reply_for_a_tester",
        "a reply of nearly the largest size",
        "return ['x' * 100_000] * 39",
        _ASSERT_ONE,
    ),
    HostileProgram(
        name="many_names",
        why="announces a hundred thousand functions",
        source=FORGING + "say({'ready': {'functions': [f'f{n}' for n in range(100_000)], 'classes': []}})\n",
        tests=_ONE,
        outcomes=_CLAIM,
    ),
)

COMPARISONS = (
    _claims("colliding_set", "a set whose elements share one hash", f"b'{{\"s\": [' + {_COLLIDING} + b']}}'"),
    _claims("colliding_keys", "a dictionary whose keys share one hash", f"b'{{\"d\": [' + {_COLLIDING_PAIRS} + b']}}'"),
    _claims(
        "colliding_set_for_a_tester",
        "the same for a tester, which reads it too",
        f"b'{{\"s\": [' + {_COLLIDING} + b']}}'",
        _ASSERT_ONE,
    ),
    _returns(
        "nan_keys",
        "a dictionary of NaN keys",
        "return {float('nan'): i for i in range(20_000)}",
        calls(((1,), {"nan": 1})),
    ),
    _returns(
        "dear_comparison",
        "rows in reverse with one wrong, where any order will do",
        """
        rows = [[n, str(n)] for n in range(20_000)]
        rows[5] = [5, '6']
        return rows[::-1]
        """,
        calls(((1,), _ROWS), unordered_lines=True),
    ),
    _returns(
        "mixed_comparison",
        "unordered values of types that cannot be sorted",
        "return [x for i in range(5_000) for x in (i, str(i), None, [i], {'a': i}, float('nan'))]",
        calls(((1,), _MIXED), unordered_lines=True),
    ),
    _prints("many_tokens", "thirty thousand tokens where one is expected", "print('1 ' * 30_000)"),
    _prints("many_blank_lines", "blank lines before the answer", "print('\\n' * 60_000 + '42')"),
    _prints("long_digits", "leading zeros and a digit too many", "print('0' * 60_000 + '421')"),
    _prints(
        "long_decimal",
        "a number of fifty thousand digits within a tolerance",
        "print('1' * 50_000 + '.5e-49999')",
        stdio(("", "9.5\n"), tolerance=1e-9),
    ),
    _prints(
        "long_exponent",
        "an exponent that makes a huge power of ten",
        "print('1e99999999999')",
        stdio(("", "1.5\n"), tolerance=1e-9),
    ),
    _prints(
        "dear_lines",
        "ten thousand unordered lines, one wrong",
        "for n in range(10_000, 0, -1):\n    print(n if n != 7 else 8)",
        stdio(("", _LINES), unordered_lines=True, tolerance=1e-9),
    ),
)

PROGRAMS = (*NUMBERS, *DEPTHS, *AMOUNTS, *COMPARISONS)
