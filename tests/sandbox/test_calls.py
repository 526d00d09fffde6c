"""Calls: right results pass, and no trick on the channel does. Real slots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from funicular.rewards.sandbox.formats import parse_tests
from funicular.rewards.sandbox.types import Comparison, Judgement, Limits, Outcome
from tests.judge_slots import BRIEF, OUT_OF_TIME, Slots, started_slots

RIGHT = "def square(x):\n    return x * x\n"
SQUARE = parse_tests({"fn_name": "square", "inputs": [[2], [3], [10]], "outputs": [4, 9, 100]})


@pytest.fixture(scope="module")
def slots() -> Iterator[Slots]:
    yield from started_slots()


@pytest.fixture(autouse=True)
def _next_submission_is_unharmed(slots: Slots) -> Iterator[None]:
    yield
    assert slots.judge(RIGHT, SQUARE).passed


def calls(*cases: tuple[list[Any], Any], comparison: Comparison | None = None) -> Any:
    raw = {"fn_name": "f", "inputs": [case[0] for case in cases], "outputs": [case[1] for case in cases]}
    return parse_tests(raw, comparison=comparison or Comparison())


def outcomes(judgement: Judgement) -> list[Outcome]:
    return [case.outcome for case in judgement.cases]


def test_a_function_that_is_right_everywhere_passes(slots: Slots) -> None:
    for source in (RIGHT, "class Solution:\n    def square(self, x):\n        return x ** 2\n"):
        judgement = slots.judge(source, SQUARE)
        assert (judgement.outcome, judgement.tests_passed, judgement.tests_run) == ("ok", 3, 3)
        assert outcomes(judgement) == [Outcome.OK] * 3


def test_calls_stop_at_the_first_failure_unless_all_tests_are_wanted(slots: Slots) -> None:
    source = "def square(x):\n    if x == 3: raise ValueError('three')\n    return x * x"
    first = slots.judge(source, SQUARE)
    assert outcomes(first) == [Outcome.OK, Outcome.RUNTIME_ERROR]
    assert first.detail == "test 2 of 3: runtime_error: raised ValueError: three"
    every = slots.judge(source, SQUARE, all_tests=True)
    assert outcomes(every) == [Outcome.OK, Outcome.RUNTIME_ERROR, Outcome.OK]
    assert (every.outcome, every.tests_passed) == (Outcome.RUNTIME_ERROR, 2)


def test_arguments_and_results_of_every_plain_type_cross(slots: Slots) -> None:
    values = [None, True, -1, 10**30, 1.5, "ü\ud800", [1, [2]], {"a": {"b": [None]}}, float("inf")]
    tests = calls(*(([value], value) for value in values))
    assert slots.judge("def f(x): return x", tests).passed
    assert slots.judge("def f(x): return {1: (2, 3)}", calls(([0], {"1": [2, 3]}))).passed
    assert slots.judge("import numpy\ndef f(x): return numpy.arange(x)", calls(([3], [0, 1, 2]))).passed
    assert slots.judge("def f(x):\n    for i in range(x): yield i", calls(([3], [0, 1, 2]))).passed


def test_a_tolerance_is_used_for_results(slots: Slots) -> None:
    within = Comparison(tolerance=1e-6)
    assert not slots.judge("def f(x): return x / 3", calls(([1], 0.3333333))).passed
    assert slots.judge("def f(x): return x / 3", calls(([1], 0.3333333), comparison=within)).passed


RAW = """
import json, os, threading, time
def say(text):
    os.write(4, text.encode())
def question():
    global number
    number = json.loads(os.read(4, 65536))["id"]
def reply(value):
    say('{"id":' + str(number) + ',"value":' + value + "}\\n")
say('{"ready":{}}\\n')
"""
"""What speaks on the channel itself, without the runtime."""
ASKED = RAW + "question()\n"
TRICKS: list[tuple[str, set[Outcome]]] = [
    # Results that are no answers.
    ("def f(x): return x", {Outcome.WRONG}),
    ("def f(x): pass", {Outcome.WRONG}),
    ("def f(x): return True", {Outcome.WRONG}),
    ("def f(x): return float('nan')", {Outcome.WRONG}),
    ("def f(x): return NotImplemented", {Outcome.WRONG}),
    ("class A:\n    def __eq__(self, o): return True\ndef f(x): return A()", {Outcome.WRONG}),
    ("class A(int):\n    def __eq__(self, o): return True\ndef f(x): return A(x)", {Outcome.WRONG}),
    ("class A(str):\n    def __eq__(self, o): return True\ndef f(x): return A('16')", {Outcome.WRONG}),
    ("class A(list):\n    def __eq__(self, o): return True\ndef f(x): return A([1])", {Outcome.WRONG}),
    ("class A(dict):\n    def items(self): return [('a', 1)]\ndef f(x): return A()", {Outcome.WRONG}),
    ("def f(x):\n    y = []\n    y.append(y)\n    return y", {Outcome.WRONG}),
    ("def f(x):\n    y = 1\n    for _ in range(3000): y = [y]\n    return y", {Outcome.WRONG}),
    ("def f(x): return 10 ** 100_000", {Outcome.WRONG}),
    ("def f(x): return lambda: 16", {Outcome.WRONG}),
    ("def f(x): return 'x' * (8 << 20)", {Outcome.WRONG, Outcome.MEMORY}),
    ("def f(x): return 16 if x == 4 else 0", {Outcome.WRONG}),
    # Exceptions that other harnesses take for a result.
    ("def f(x): raise AssertionError", {Outcome.RUNTIME_ERROR}),
    ("def f(x): raise SystemExit(0)", {Outcome.RUNTIME_ERROR}),
    ("import unittest\ndef f(x): raise unittest.SkipTest", {Outcome.RUNTIME_ERROR}),
    ("def f(x): raise KeyboardInterrupt", {Outcome.RUNTIME_ERROR}),
    ("class E(BaseException):\n    def __str__(self): raise self\ndef f(x): raise E", {Outcome.RUNTIME_ERROR}),
    ("def f(x): return f(x)", {Outcome.RUNTIME_ERROR}),
    # Ends.
    ("raise SystemExit(0)", {Outcome.RUNTIME_ERROR}),
    ("import os; os._exit(0)", {Outcome.RUNTIME_ERROR}),
    ("import os\ndef f(x): os._exit(0)", {Outcome.RUNTIME_ERROR}),
    ("import os\ndef f(x): os.close(4); return 16", {Outcome.RUNTIME_ERROR}),
    ("import os\ndef f(x): os.closerange(0, 100)", {Outcome.RUNTIME_ERROR}),
    ("import os\ndef f(x): os.abort()", {Outcome.SIGNAL}),
    ("def f(x):\n    while True: pass", OUT_OF_TIME),
    ("import time\ndef f(x): time.sleep(60)", {Outcome.WALL}),
    ("import time\ntime.sleep(60)", {Outcome.WALL}),
    ("while True: pass", OUT_OF_TIME),
    ("def f(x): return bytearray(4 << 30)", {Outcome.MEMORY, Outcome.RUNTIME_ERROR}),
    ("x = bytearray(4 << 30)", {Outcome.MEMORY}),
    ("import socket\nsocket.socket()\ndef f(x): return x", {Outcome.FORBIDDEN}),
    ("print('x' * (2 << 20))\ndef f(x): return x * x", {Outcome.OUTPUT}),
    # Lines on the channel that are no answer to what was asked.
    (RAW + 'say(\'{"id":0,"value":16}\\n\' * 9); time.sleep(60)', {Outcome.PROTOCOL}),
    (RAW + 'time.sleep(0.3); say(\'{"id":0,"value":16}\\n\'); time.sleep(60)', {Outcome.PROTOCOL}),
    (RAW + "say('{\"ready\":{}}\\n'); time.sleep(60)", {Outcome.PROTOCOL}),
    (RAW + "while True: say('x' * 65536)", {Outcome.PROTOCOL}),
    ("import os\nos.write(4, b'16\\n')\ndef f(x): return x * x", {Outcome.PROTOCOL}),
    ("import os\nos.write(4, b'{\"ready\":1}\\n')\ndef f(x): return x * x", {Outcome.PROTOCOL}),
    ('import os\ndef f(x): os.write(4, b\'{"id":0,"value":16}\\n\'); return 16', {Outcome.PROTOCOL}),
    (ASKED + "reply('16'); reply('25'); time.sleep(60)", {Outcome.PROTOCOL}),
    (ASKED + "reply('16'); question(); number = 0; reply('25')", {Outcome.PROTOCOL}),
    (ASKED + "number += 1; reply('16'); time.sleep(60)", {Outcome.PROTOCOL}),
    (ASKED + "number = 'true'; reply('16'); time.sleep(60)", {Outcome.PROTOCOL}),
    (ASKED + "say('{\"id\":' + str(number) + '}\\n')", {Outcome.PROTOCOL}),
    (ASKED + "say('[16]\\n')", {Outcome.PROTOCOL}),
    (ASKED + "say('\\n')", {Outcome.PROTOCOL}),
    (ASKED + "os.write(4, b'\\xff\\n')", {Outcome.PROTOCOL}),
    (ASKED + "reply('{\"i\":\"0x' + '1' * 9999 + '\"}')", {Outcome.PROTOCOL}),
    (ASKED + "reply('9' * 999_999)", {Outcome.PROTOCOL}),
    (ASKED + "reply('16.0')", {Outcome.PROTOCOL}),
    (ASKED + "reply('NaN')", {Outcome.PROTOCOL}),
    (ASKED + "reply('[' * 99_999 + ']' * 99_999)", {Outcome.PROTOCOL}),
    (ASKED + "reply('{\"h\":0}')", {Outcome.PROTOCOL}),
    (ASKED + "reply('{\"d\":[[[],1]]}')", {Outcome.PROTOCOL}),
    (
        # Integers of one hash: a dict of them would take minutes to make.
        ASKED + 'pairs = (f\'[{{"i":"{k * (2**61 - 1):#x}"}},0]\' for k in range(30_000))\n'
        "reply('{\"d\":[' + ','.join(pairs) + ']}')",
        {Outcome.PROTOCOL},
    ),
    (ASKED + "while True: say('x' * 65536)", {Outcome.PROTOCOL}),
    (ASKED + "reply('16'); question(); say('{\"id\":0,'); time.sleep(60)", {Outcome.WALL}),
    (ASKED + "say('{')\nwhile True: time.sleep(0.05); say(' ')", {Outcome.WALL}),
    (ASKED + "reply('16'); os.close(4); time.sleep(60)", {Outcome.WALL}),
    (
        "import os, threading, time\ndef late():\n    while True: time.sleep(0.001); os.write(4, b'{}\\n')\n"
        "threading.Thread(target=late, daemon=True).start()\ndef f(x): time.sleep(0.2); return x * x",
        {Outcome.PROTOCOL},
    ),
    ('import os\ndef f(x): os.write(3, b\'{"run":1,"failed":0,"collected":1}\\n\')', {Outcome.RUNTIME_ERROR}),
    # A patched runtime, and a search for what is not there.
    ('import json\njson.dumps = lambda *a, **k: \'{"id":0,"value":16}\'\ndef f(x): return 0', {Outcome.WRONG}),
    (
        "import builtins\nbuiltins.type = lambda x: int\ndef f(x): return object()",
        {Outcome.WRONG, Outcome.PROTOCOL, Outcome.RUNTIME_ERROR},
    ),
    (
        "from funicular.rewards.sandbox import codec\ncodec.encode = lambda *a: 16\ndef f(x): return 0",
        {Outcome.WRONG, Outcome.RUNTIME_ERROR},
    ),
    ("import sys\nsys.modules.clear()\ndef f(x): return 0", {Outcome.WRONG, Outcome.RUNTIME_ERROR}),
    (
        "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(x): return f(x)",
        {Outcome.SIGNAL, Outcome.MEMORY, Outcome.RUNTIME_ERROR, Outcome.CPU},
    ),
    (
        "import os\nfds = []\ntry:\n    while True: fds.append(os.dup(4))\nexcept OSError: pass\ndef f(x): return 0",
        {Outcome.WRONG},
    ),
    (
        "import gc\ndef f(x):\n    for o in gc.get_objects():\n        if isinstance(o, dict) and 'expected' in o:\n"
        "            return o['expected']",
        {Outcome.WRONG},
    ),
]
SQUARES = (([4], 16), ([5], 25), ([6], 36))


@pytest.mark.parametrize(("source", "allowed"), TRICKS)
def test_no_trick_on_the_call_channel_passes(slots: Slots, source: str, allowed: set[Outcome]) -> None:
    judgement = slots.judge(source, calls(*SQUARES), limits=BRIEF)
    assert judgement.outcome in allowed, judgement.detail
    assert judgement.tests_passed < judgement.tests_total
    assert (judgement.signals.protocol_violations > 0) == (judgement.outcome is Outcome.PROTOCOL)


@pytest.mark.parametrize(
    ("then", "outcomes"),
    [
        # or the judge has seen enough, and nobody is there to listen
        ("say('more\\n'); time.sleep(60)", {Outcome.PROTOCOL, Outcome.RUNTIME_ERROR}),
        ("os._exit(3)", {Outcome.RUNTIME_ERROR}),
        ("os.abort()", {Outcome.SIGNAL}),
        ("while True: pass", OUT_OF_TIME),
        ("time.sleep(60)", OUT_OF_TIME),
    ],
)
def test_what_follows_the_last_right_reply_counts_too(slots: Slots, then: str, outcomes: set[Outcome]) -> None:
    right = ASKED + "reply('16'); question(); reply('25'); question(); "
    judgement = slots.judge(f"{right}reply('36')\n{then}", calls(*SQUARES), limits=BRIEF)
    assert judgement.outcome in outcomes
    assert (judgement.tests_passed, judgement.tests_run) == (2, 3)


def test_reading_the_canary_is_seen_in_a_reply(slots: Slots) -> None:
    reading = "import glob\ndef f():\n    found = glob.glob('/tests/*') + glob.glob('../tests/*')\n"
    judgement = slots.judge(f"{reading}    return [open(one).read() for one in found]", calls(([], "x")))
    assert judgement.outcome is Outcome.WRONG
    assert judgement.signals.canary_read


def test_no_call_sees_the_arguments_of_the_next(slots: Slots) -> None:
    peeking = """
import json, os
def f(x):
    os.set_blocking(4, False)
    try:
        return json.loads(os.read(4, 65536))["args"]["t"][0]
    except BlockingIOError:
        return x
    finally:
        os.set_blocking(4, True)
"""
    judgement = slots.judge(peeking, calls(([1], 2), ([2], 3)))
    assert judgement.outcome is Outcome.WRONG
    assert judgement.detail == "test 1 of 2: expected 2, got 1"


def test_changed_arguments_change_no_verdict(slots: Slots) -> None:
    tests = calls(([[1, 2]], [1, 2]), ([[1, 2]], [1, 2]))
    assert slots.judge("def f(x): y = list(x); x.clear(); return y", tests).passed
    assert not slots.judge("def f(x): x.clear(); return x", tests).passed


def test_large_arguments_and_results_cross(slots: Slots) -> None:
    numbers = list(range(200_000))
    assert slots.judge("def f(x): return x[::-1]", calls(([numbers], numbers[::-1]))).passed


def test_replies_have_a_total(slots: Slots) -> None:
    tests = calls(*(([n], n) for n in range(20)))
    judgement = slots.judge("def f(x): return 'x' * (4_000_000)", tests, all_tests=True, limits=Limits(cpu_s=5))
    assert judgement.outcome is Outcome.WRONG  # the first of them
    assert outcomes(judgement)[-1] is Outcome.OUTPUT
    assert len(judgement.cases) < 12
