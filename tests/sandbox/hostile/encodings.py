"""Programs that play with encodings: of what they print, of what they return, of their own source."""

from __future__ import annotations

from funicular.rewards.sandbox.types import Outcome, TestSet
from tests.sandbox.programs import DOUBLE, FAILURES, FORGING, HostileProgram, calls, code, stdio

_WRONG = frozenset({Outcome.WRONG})
_BROKEN = frozenset({Outcome.RUNTIME_ERROR, Outcome.COMPILE_ERROR, Outcome.WRONG})
_CLAIM = frozenset({Outcome.WRONG, Outcome.PROTOCOL, Outcome.RUNTIME_ERROR})
_HUGE = _CLAIM | {Outcome.CPU, Outcome.MEMORY}
_TWO_LINES = stdio(("", "1\n2\n"))
_YES = stdio(("", "Yes\n"))
_ACCENT = stdio(("", "héllo\n"))


def _bytes(name: str, why: str, written: bytes, tests: TestSet = DOUBLE) -> HostileProgram:
    source = f"import sys\nsys.stdout.buffer.write({written!r})\n"
    return HostileProgram(name=name, why=why, source=source, tests=tests, outcomes=_WRONG)


def _source(name: str, why: str, source: str, outcomes: frozenset[Outcome] = _BROKEN) -> HostileProgram:
    return HostileProgram(name=name, why=why, source=code(source), tests=DOUBLE, outcomes=outcomes)


def _returns(name: str, why: str, expression: str, expected: object) -> HostileProgram:
    source = f"def solve(n):\n    return {expression}\n"
    return HostileProgram(name=name, why=why, source=source, tests=calls(((1,), expected)), outcomes=_CLAIM)


def _raises(name: str, why: str, statement: str) -> HostileProgram:
    return HostileProgram(
        name=name, why=why, source=f"def solve(n):\n    {statement}\n", tests=calls(((1,), 1)), outcomes=_HUGE
    )


PRINTED = (
    _bytes("invalid_utf8", "a stray byte after the answer", b"42\xff\n"),
    _bytes("surrogates", "encoded surrogates", b"42\xed\xa0\x80\n"),
    _bytes("nul_after", "NUL after the answer", b"42\0\n"),
    _bytes("nul_inside", "NUL between the digits", b"4\x002\n"),
    _bytes("byte_order_mark", "a byte order mark", b"\xef\xbb\xbf42\n"),
    _bytes("overlong", "digits in overlong forms", b"\xc0\xb4\xc0\xb2\n"),
    _bytes("utf16", "UTF-16", "42\n".encode("utf-16")),
    _bytes("latin1", "Latin-1", "héllo\n".encode("latin-1"), _ACCENT),
    _bytes("decomposed", "a letter and its accent apart", "he\u0301llo\n".encode(), _ACCENT),
    _bytes("right_to_left", "24, shown from right to left", "\u202e24\u202c\n".encode()),
    _bytes("zero_width", "a blank of no width inside", "4\u200b2\n".encode()),
    _bytes("zero_width_after", "a joiner after", "42\u200d\n".encode()),
    _bytes("full_width_digits", "digits of another block", "４２\n".encode()),
    _bytes("arabic_digits", "digits of another script", "٤٢\n".encode()),
    _bytes("superscript_digits", "digits that int() refuses and isdigit() accepts", "⁴²\n".encode()),
    _bytes("homoglyph", "a Cyrillic letter that looks Latin", "Yеs\n".encode(), _YES),
    _bytes("carriage_return", "a wrong answer, painted over by the right one", b"41\r42\n"),
    _bytes("backspace", "a wrong digit, taken back", b"41\x082\n"),
    _bytes("escape_sequences", "terminal codes around the answer", b"\x1b[2J41\x1b[2K\r42\x1b]0;passed\x07\n"),
    _bytes("line_separator", "a Unicode line separator for a newline", "1\u20282\n".encode(), _TWO_LINES),
    _bytes("vertical_tab", "other control characters for a newline", b"1\x0b2\n", _TWO_LINES),
    _bytes("next_line", "NEL for a newline", b"1\xc2\x852\n", _TWO_LINES),
    _bytes("old_newlines", "carriage returns for newlines", b"1\r2\r", _TWO_LINES),
    _bytes("group_separator", "a separator that str.split takes for a blank", b"1\x1d2\n", stdio(("", "1 2\n"))),
    _bytes("no_break_space", "a blank that is none", "1\u00a02\n".encode(), stdio(("", "1 2\n"))),
    HostileProgram(
        name="one_long_line",
        why="a line of a megabyte",
        source="print('4' * (1 << 20))\n",
        tests=DOUBLE,
        outcomes=frozenset({Outcome.WRONG, Outcome.OUTPUT}),
    ),
    HostileProgram(
        name="escapes_on_stderr",
        why="terminal codes and broken bytes for whoever reads its errors",
        source=code("""
            import sys
            sys.stderr.buffer.write(b'\\x1b]0;owned\\x07\\x1b[31m\\xff\\x00\\r\\nline\\u2028')
            sys.exit(1)
            """),
        tests=DOUBLE,
        outcomes=frozenset({Outcome.RUNTIME_ERROR}),
    ),
)

SOURCE = (
    _source("empty", "no source", ""),
    _source("blank", "nothing but blanks", " \n\t\n"),
    _source("nul_in_source", "NUL in the source", "print(42)\0\n"),
    _source("surrogate_in_source", "a lone surrogate in the source", "print(42) # \ud800\nprint('\udfff')\n"),
    _source(
        "unknown_cookie",
        "declares an encoding that does not exist",
        """
        # -*- coding: no-such -*-
        print(42)
        """,
    ),
    _source(
        "rot13_cookie",
        "declares an encoding that is no encoding of text",
        """
        # -*- coding: rot13 -*-
        cevag(42)
        """,
    ),
    _source("no_python", "prose", "The answer is, of course, 42.\n"),
    _source("open_bracket", "a bracket that is never closed", "print((((42\n"),
    _source("long_name", "an error that quotes a name of a megabyte", f"{'x' * (1 << 20)}\n"),
    _source(
        "deep_indentation",
        "a hundred levels and more of blocks",
        "".join(" " * i + "if 1:\n" for i in range(120)),
        _BROKEN,
    ),
    _source("huge_literal", "a number of a million digits in the source", f"x = {'7' * 1_000_000}\nprint(42)\n"),
)

RETURNED = (
    _returns("surrogate_returned", "a lone surrogate", "chr(0xD800)", "?"),
    _returns("surrogate_pair_returned", "a pair of surrogates for one character", "chr(0xD83D) + chr(0xDE00)", "😀"),
    _returns("nul_returned", "NUL at the end", "'right' + chr(0)", "right"),
    _returns("bytes_for_text", "bytes where a text is expected", "b'right'", "right"),
    _returns("zero_width_returned", "a blank of no width", "'ri\\u200bght'", "right"),
    _returns("full_width_returned", "letters of another block", "'ｒight'", "right"),
    _raises(
        "message_of_surrogates",
        "an exception with a message that cannot be encoded",
        "raise ValueError(chr(0xD800) * 600)",
    ),
    _raises("message_of_codes", "terminal codes and newlines in a message", "raise ValueError('\\x1b[2J\\r\\n' * 100)"),
    _raises("huge_message", "a message of 50 MB", "raise ValueError('x' * 50_000_000)"),
    _raises("nameless", "an exception class with an odd name", "raise type('\\n{}\\x1b' * 300, (Exception,), {})('x')"),
    _raises(
        "broken_message",
        "an exception whose text raises",
        "raise type('E', (Exception,), {'__str__': lambda s: 1 / 0, '__repr__': lambda s: 1 / 0})()",
    ),
    HostileProgram(
        name="bytes_on_the_channel",
        why="invalid UTF-8, NUL and surrogate escapes where a reply is due",
        source=FORGING
        + code("""
        def solve(n):
            write(b'{"id": %d, "value": "\\xff\\xfe\\x00"}\\n' % request_id())
            os.read(4, 1)
        """),
        tests=calls(((1,), 1)),
        outcomes=_CLAIM,
    ),
    HostileProgram(
        name="surrogate_on_the_channel",
        why="a surrogate that JSON lets through",
        source=FORGING
        + code("""
        def solve(n):
            write(b'{"id": %d, "value": "\\\\ud800"}\\n' % request_id())
            os.read(4, 1)
        """),
        tests=calls(((1,), 1)),
        outcomes=FAILURES,
    ),
)

PROGRAMS = (*PRINTED, *SOURCE, *RETURNED)
