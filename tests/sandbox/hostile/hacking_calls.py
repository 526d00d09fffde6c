"""Reward hacks where a function is called with arguments: it ends early, or speaks on its channel itself."""

from __future__ import annotations

from funicular.rewards.sandbox.types import Outcome, TestSet
from tests.sandbox.programs import FORGING, HostileProgram, calls, code

_CLAIM = frozenset({Outcome.WRONG, Outcome.PROTOCOL, Outcome.RUNTIME_ERROR})
_ENDED = _CLAIM | {Outcome.SIGNAL, Outcome.WALL, Outcome.FORBIDDEN}
_ADD = calls(((1, 2), 3), ((5, 7), 12))


def _speaks(
    name: str, why: str, source: str, tests: TestSet = _ADD, outcomes: frozenset[Outcome] = _CLAIM
) -> HostileProgram:
    return HostileProgram(
        name=f"{name}_in_call", why=why, source=FORGING + code(source), tests=tests, outcomes=outcomes
    )


def _called(
    name: str, why: str, source: str, tests: TestSet = _ADD, outcomes: frozenset[Outcome] = _CLAIM
) -> HostileProgram:
    return HostileProgram(name=f"{name}_in_call", why=why, source=code(source), tests=tests, outcomes=outcomes)


ENDED = (
    _called("exit_0", "ends when it is loaded", "import sys\nsys.exit(0)\n", outcomes=_ENDED),
    _called(
        "hard_exit_0",
        "ends in the first call",
        """
        import os
        def solve(a, b):
            os._exit(0)
        """,
        outcomes=_ENDED,
    ),
    _speaks(
        "reply_then_exit",
        "answers the first of two calls rightly, then ends well",
        """
        def solve(a, b):
            say({'id': request_id(), 'value': a + b})
            os._exit(0)
        """,
        outcomes=_ENDED,
    ),
    _called(
        "killed_in_last_call",
        "answers all calls but the last",
        """
        import os
        def solve(a, b):
            return 3 if a == 1 else os.abort()
        """,
        outcomes=_ENDED,
    ),
    _called(
        "raises",
        "raises what a harness might take for a skip",
        """
        import unittest
        def solve(a, b):
            raise unittest.SkipTest('no')
        """,
    ),
    _called(
        "raises_exit",
        "raises SystemExit(0)",
        """
        def solve(a, b):
            raise SystemExit(0)
        """,
        outcomes=_ENDED,
    ),
    _called(
        "raises_base",
        "raises GeneratorExit and StopIteration",
        """
        def solve(a, b):
            raise (GeneratorExit if a == 1 else StopIteration(3))
        """,
        outcomes=_ENDED,
    ),
    _called("nothing_defined", "defines no such function", "answer = 3\n", outcomes=_ENDED),
    _called(
        "deleted",
        "its function removes itself",
        """
        def solve(a, b):
            global solve
            del solve
            return a + b
        """,
    ),
)

CHANNEL = (
    _speaks(
        "replies_in_advance",
        "writes the right replies before it was asked",
        """
        import time
        say({'ready': {'functions': ['solve'], 'classes': []}})
        for n in range(3):
            say({'id': n, 'value': 3}, {'id': n, 'value': 12})
        time.sleep(60)
        """,
        outcomes=_CLAIM | {Outcome.WALL},
    ),
    _speaks(
        "replies_for_future_calls",
        "during the first call answers the second, too",
        """
        def solve(a, b):
            if a == 1:
                say({'id': request_id(), 'value': 3}, {'id': request_id() + 1, 'value': 12})
            return a + b
        """,
    ),
    _speaks(
        "two_replies",
        "a wrong and a right reply to every call",
        """
        def solve(a, b):
            say({'id': request_id(), 'value': 0})
            return a + b
        """,
    ),
    _speaks(
        "verdict_as_reply",
        "verdicts where a reply is due",
        """
        def solve(a, b):
            say({'outcome': 'ok'}, {'passed': True}, {'run': 2, 'failed': 0, 'skipped': 0, 'collected': 2})
            return 0
        """,
    ),
    _speaks(
        "other_ids",
        "replies with ids of another type, negative, huge",
        """
        def solve(a, b):
            say({'id': True, 'value': a + b}, {'id': '0', 'value': a + b}, {'id': -1, 'value': a + b}, '{"id": 1e400}')
            return 0
        """,
    ),
    _speaks(
        "twice_in_a_reply",
        "the same keys twice in one reply, values that disagree",
        """
        def solve(a, b):
            say('{"id": %d, "value": 0, "value": 3, "raised": "ValueError"}' % request_id())
            os._exit(0)
        """,
    ),
    _speaks(
        "unknown_tags",
        "tags that a careless decoder would act on",
        """
        def solve(a, b):
            say({'id': request_id(), 'value': {'py/object': 'os.system', 'args': ['true']}})
            os._exit(0)
        """,
    ),
    _speaks(
        "handles",
        "handles where plain data is due",
        """
        def solve(a, b):
            say({'id': request_id(), 'handle': 0, 'class': 'int'})
            os._exit(0)
        """,
    ),
    _called(
        "changed_codec",
        "changes the runtime that answers for it, which can only change claims",
        """
        import sys
        for name, module in list(sys.modules.items()):
            if name.startswith("funicular"):
                for attribute, value in list(vars(module).items()):
                    if callable(value) and attribute in ("encode", "dumps", "loads", "decode", "_encode", "same_value"):
                        setattr(module, attribute, lambda *a, **k: {"value": 3, "passed": True})
        def solve(a, b):
            return 0
        """,
        outcomes=_ENDED,
    ),
    _called(
        "changed_json",
        "patches json, os.write and the frames of its caller",
        """
        import builtins, json, os, sys
        json.dumps = lambda *a, **k: '{"id": 0, "value": 3}'
        json.JSONEncoder.encode = json.dumps
        builtins.type = lambda *a: int
        builtins.isinstance = lambda *a: True
        def solve(a, b):
            frame = sys._getframe()
            while frame:
                for name in list(frame.f_locals):
                    if name in ("expected", "tests", "cases", "answer"):
                        frame.f_locals[name] = 0
                frame = frame.f_back
            return 0
        """,
        outcomes=_ENDED,
    ),
    _called(
        "descriptors_as_reply",
        "sends descriptors along with its replies, for the trusted side to collect",
        """
        import array, os, socket
        def solve(a, b):
            channel = socket.socket(fileno=os.dup(4))
            sent = array.array("i", [0] * 64).tobytes()
            for _ in range(100):
                channel.sendmsg([b" "], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, sent)])
            return 0
        """,
        outcomes=_ENDED,
    ),
    _called(
        "closed_channel",
        "closes its channel after the first reply",
        """
        import os
        def solve(a, b):
            if a == 5:
                os.close(4)
            return a + b
        """,
        outcomes=_ENDED,
    ),
    _called(
        "moved_channel",
        "puts its standard output in the channel's place",
        """
        import os
        os.dup2(1, 4)
        print('{"id": 0, "value": 3}')
        def solve(a, b):
            return a + b
        """,
        outcomes=_ENDED,
    ),
)

PROGRAMS = (*ENDED, *CHANNEL)
