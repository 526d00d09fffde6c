import pytest

from tests.runtime_jobs import Served, run_program

STDIN = b"3\nab c\nd\xc3\xa9f\nlast"


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("n = int(input())\nprint(n * 2, input())", "6 ab c\n"),
        ("import sys\nprint(sys.stdin.read().split())", "['3', 'ab', 'c', 'déf', 'last']\n"),
        ("import sys\nprint([line for line in sys.stdin])", "['3\\n', 'ab c\\n', 'déf\\n', 'last']\n"),
        ("import sys\nprint(sys.stdin.readline(), sys.stdin.readlines())", "3\n ['ab c\\n', 'déf\\n', 'last']\n"),
        ("import sys\nprint(sys.stdin.buffer.readline(), sys.stdin.buffer.read())", f"b'3\\n' {STDIN[2:]!r}\n"),
        ("import os\nprint(os.read(0, 4), os.read(0, 99))", f"{STDIN[:4]!r} {STDIN[4:]!r}\n"),
        ("print(open(0).read())", STDIN.decode() + "\n"),
        ("import fileinput\nprint(sum(1 for _ in fileinput.input()))", "4\n"),
        ("import sys\ninput = sys.stdin.readline\nprint(input(), end='')", "3\n"),
        ("import io, os\nprint(len(io.BytesIO(os.read(0, 999)).readlines()))", "4\n"),
        ("try:\n    while True: input()\nexcept EOFError: print('end')", "end\n"),
    ],
)
def test_every_way_of_reading_standard_input_works(source: str, written: str) -> None:
    ended = run_program(source, STDIN)
    assert (ended.status, ended.stdout.decode(), ended.stderr) == (0, written, "")


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("", 0),
        ("import sys; sys.exit()", 0),
        ("import sys; sys.exit(7)", 7),
        ("import sys; sys.exit(True)", 1),
        ("import sys; sys.exit(-1)", 255),
        ("import sys; sys.exit(1 << 80)", 255),
        ("import sys; sys.exit('message')", 1),
        ("exit(4)", 4),
        ("quit()", 0),
        ("raise SystemExit", 0),
        ("raise KeyboardInterrupt", 1),
        ("1 / 0", 1),
        ("def broken(:", 1),
        ("print('\x00')", 1),
        ("raise MemoryError('no more')", 99),
        ("class Full(MemoryError): pass\nraise Full", 99),
        ("x = [0] * (1 << 60)", 99),
        ("import os; os._exit(5)", 5),
        ("import threading\nthreading.Thread(target=lambda: 1 / 0).start()", 0),
        ("import atexit\natexit.register(lambda: 1 / 0)", 0),
        ("class Loud(Exception):\n    def __str__(self): raise ValueError\nraise Loud", 1),
        ("import sys\ndef hook(*_): raise ValueError\nsys.excepthook = hook\n1 / 0", 1),
        ("import sys\nsys.stderr = None\n1 / 0", 1),
        ("import os\nprint('lost')\nos.close(1)", 120),
    ],
)
def test_the_exit_status_is_that_of_a_script(source: str, status: int) -> None:
    assert run_program(source).status == status


def test_a_message_to_exit_goes_to_standard_error() -> None:
    assert run_program("import sys\nsys.exit('wrong input')").stderr == "wrong input\n"


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("import atexit\natexit.register(print, 'exit')\nprint('end')", "end\nexit\n"),
        ("import threading, time\nthreading.Thread(target=lambda: (time.sleep(.05), print('late'))).start()", "late\n"),
        ("out = open(1, 'w', closefd=False)\nout.write('buffered')", "buffered"),
        ("write = open(1, 'w').write\nwrite('bound method')", "bound method"),
        ("import io, sys\nkept = sys.stdout\nprint('first')\nsys.stdout = io.StringIO()\nprint('nowhere')", "first\n"),
        ("class Loud:\n    def __del__(self): print('deleted')\nheld = Loud()", "deleted\n"),
        ("import os, sys\nprint('a')\nsys.stdout.flush()\nos.write(1, b'b')", "a\nb"),
        ("import sys\nsys.stdout.buffer.write(bytes(range(128, 256)))", bytes(range(128, 256))),
        ("print('x' * 300000)", "x" * 300000 + "\n"),
        ("print('before')\n1 / 0", "before\n"),
    ],
)
def test_all_output_is_written_before_the_end(source: str, written: str | bytes) -> None:
    assert run_program(source).stdout == (written.encode() if isinstance(written, str) else written)


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("print(__name__, __file__)", "__main__ main.py\n"),
        ("if __name__ == '__main__': print('main')", "main\n"),
        ("import sys; print(sys.argv)", "['main.py']\n"),
        ("import __main__\nx = 5\nprint(__main__.x, dir())", None),
        ("from dataclasses import dataclass\n@dataclass\nclass P: x: int\nprint(P(3))", "P(x=3)\n"),
        ("import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))).__name__)", "A\n"),
        ("import inspect\ndef f(): pass\nprint(inspect.getsource(f), end='')", "def f(): pass\n"),
        ("import asyncio\nasync def f(): await asyncio.sleep(0); return 3\nprint(asyncio.run(f()))", "3\n"),
        ("def f(n): return 0 if n == 0 else 1 + f(n - 1)\nprint(f(990))", "990\n"),
        ("import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return n and 1 + f(n - 1)\nprint(f(50000))", "50000\n"),
        (b"# -*- coding: latin-1 -*-\nprint('\xe9')", "é\n"),
        (b"\xef\xbb\xbfprint('bom')", "bom\n"),
        ("from __future__ import annotations\ndef f(x: y): return 1\nprint(f(0))", "1\n"),
        ("def f(x: list): return 1\nprint(f.__annotations__['x'])", "<class 'list'>\n"),
        ("import gc; print(gc.isenabled())", "True\n"),
    ],
)
def test_a_program_finds_what_a_script_finds(source: str | bytes, written: str | None) -> None:
    ended = run_program(source)
    assert (ended.status, ended.stderr) == (0, "")
    assert written is None or ended.stdout.decode() == written


def test_a_traceback_shows_the_source_and_nothing_of_the_runtime() -> None:
    stderr = run_program("def f():\n    return 1 / 0\n\nf()").stderr
    assert stderr.splitlines()[1:3] == ['  File "main.py", line 4, in <module>', "    f()"]
    assert stderr.endswith("ZeroDivisionError: division by zero\n")
    assert "runtime" not in stderr


def test_the_traceback_of_a_deep_recursion_is_short() -> None:
    stderr = run_program("def f(n):\n    g(n)\ndef g(n):\n    f(n)\nf(0)").stderr
    assert "RecursionError" in stderr
    assert len(stderr.splitlines()) < 60


def test_two_jobs_draw_different_random_numbers() -> None:
    source = "import random; print(random.random())"
    assert run_program(source).stdout != run_program(source).stdout


SOURCE = """
import collections, enum, sys
def double(x): return x * 2
def grow(items, extra=1): items.append(extra)
def numbers(n): yield from range(n)
def forever():
    while True: yield 1
def fail(kind, *args): raise kind_of(kind)(*args)
def kind_of(name): return {"E": E, "V": ValueError, "X": SystemExit, "M": MemoryError}[name]
class E(KeyError): pass
def opaque(): return sys
def nested(): return [Node(1)]
def adder(n): return lambda x: x + n
async def later(): return 3
value = [1, 2]
class Level(enum.IntEnum): LOW = 1
class Colour(enum.Enum): RED = 1
Point = collections.namedtuple("Point", "x y")
def point(*levels): return Point(1, [Level(n) for n in levels])
def put(items): items.append(Point(1, 2))
def colour(): return Colour.RED
class Node:
    limit = 5
    def __init__(self, v): self.v = v
    def get(self): return self.v
    def __len__(self): return 4
class Solution:
    def __init__(self): self.calls = 0
    def count(self, x): self.calls += 1; return [self.calls, x]
if __name__ == "__main__":
    input()
"""


def test_a_candidate_announces_what_it_defines() -> None:
    with Served(SOURCE) as served:
        ready = served.ready["ready"]
        assert {"double", "grow", "later"} <= set(ready["functions"])
        assert ready["coroutines"] == ["later"]
        assert ready["classes"] == ["Level", "Colour", "Point", "Node", "Solution"]
        assert ready["exceptions"] == {"E": "KeyError"}


@pytest.mark.parametrize(
    ("function", "arguments", "reply"),
    [
        ("double", ([1, 2],), {"value": [1, 2, 1, 2]}),
        ("count", ("a",), {"value": [1, "a"]}),
        ("numbers", (3,), {"value": [0, 1, 2]}),
        ("later", (), {"value": 3}),
        ("forever", (), {"opaque": "generator"}),
        ("opaque", (), {"opaque": "module"}),
        ("nested", (), {"opaque": "Node"}),
        ("Node", (1,), {"opaque": "Node"}),
        ("point", (1,), {"value": {"t": [1, [1]]}}),
        ("colour", (), {"opaque": "Colour"}),
        ("double", ("a" * (3 << 20),), {"opaque": "a message"}),
        ("fail", ("V", "no"), {"raised": "ValueError", "message": "no", "arguments": {"t": ["no"]}}),
        (
            "fail",
            ("E", 1),
            {"raised": "KeyError", "class": "E", "message": "1", "arguments": {"t": [1]}},
        ),
        ("fail", ("X", 0), {"raised": "SystemExit", "message": "0", "arguments": {"t": [0]}}),
        ("fail", ("M",), {"raised": "MemoryError", "message": "", "arguments": {"t": []}}),
    ],
)
def test_a_call_is_answered(function: str, arguments: tuple[object, ...], reply: dict[str, object]) -> None:
    with Served(SOURCE) as served:
        assert served.ask(function, *arguments) == {"id": 7, **reply}
        assert served.ask("count", 1)["value"] == [1, 1]  # it goes on, and with a new Solution


def test_a_missing_function_is_a_name_error() -> None:
    with Served(SOURCE) as served:
        assert served.ask("absent")["raised"] == "NameError"
        assert served.ask("value")["raised"] == "NameError"


def test_changed_arguments_come_back_only_where_asked_for_and_changed() -> None:
    with Served(SOURCE) as served:
        assert "args" not in served.ask("grow", [1])
        assert served.ask("grow", [1], mutations=True)["args"] == {"t": [[1, 1]]}
        assert "args" not in served.ask("double", [1], mutations=True)
        assert served.ask("grow", [1], kwargs={"d": [["extra", 5]]}, mutations=True)["args"] == {"t": [[1, 5]]}


def test_an_object_stays_and_is_used_by_its_handle() -> None:
    with Served(SOURCE) as served:
        made = served.ask("Node", 5, mutations=True)
        assert (made["handle"], made["class"]) == (0, "Node")
        assert served.ask("get", handle=0)["value"] == 5
        assert served.ask("__len__", handle=0)["value"] == 4
        assert served.ask("__getattr__", "v", handle=0)["value"] == 5
        assert served.ask("__getattr__", "get", handle=0)["callable"] is True
        assert served.ask("__setattr__", "v", 6, handle=0)["value"] is None
        assert served.ask("get", handle=0)["value"] == 6
        assert served.ask("__getattr__", "limit", handle="Node")["value"] == 5
        assert served.ask("__getattr__", "value")["value"] == [1, 2]
        assert served.ask("get", handle=9)["raised"] == "IndexError"
        added = served.ask("adder", 2, mutations=True)["handle"]
        assert served.ask("__call__", 3, handle=added)["value"] == 5


def test_results_that_are_plain_data_with_names_stay_and_their_value_crosses() -> None:
    with Served(SOURCE) as served:
        named = {"h": [1, "Point", {"t": [1, [{"h": [0, "Level", 1]}]]}]}
        assert served.ask("point", 1, mutations=True)["value"] == named
        assert served.ask("__getattr__", "x", handle=1)["value"] == 1
        assert served.ask("put", [], mutations=True)["args"] == {"t": [[{"h": [2, "Point", {"t": [1, 2]}]}]]}


def test_a_constant_is_referred_to_without_its_value() -> None:
    with Served(SOURCE) as served:
        assert served.ask("__getattr__", "LOW", handle="Level", mutations=True)["value"] == {"h": [0, "Level"]}


def test_a_handle_is_not_compared_by_the_candidate() -> None:
    with Served("class Same:\n    def __init__(self): pass\n") as served:
        served.ask("Same", mutations=True)
        assert served.ask("__eq__", 3, handle=0)["opaque"] == "NotImplementedType"
        assert served.ask("__add__", 3, handle=0)["raised"] == "AttributeError"


def test_prints_while_serving_go_to_standard_output() -> None:
    with Served("def f(): print('seen')") as served:
        assert served.ask("f")["value"] is None
        assert served.close().stdout == b"seen\n"


def test_a_candidate_ends_when_its_caller_is_gone() -> None:
    with Served("import threading, time\nthreading.Thread(target=lambda: time.sleep(1000)).start()") as served:
        assert served.close().status == 0


@pytest.mark.parametrize(("source", "status"), [("1 / 0", 1), ("exit(3)", 3), ("raise MemoryError", 99)])
def test_a_candidate_whose_source_fails_announces_nothing(source: str, status: int) -> None:
    with Served(source) as served:
        assert served.ready is None
        assert served.close().status == status
