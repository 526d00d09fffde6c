"""Every style of reading standard input, and of writing standard output."""

from __future__ import annotations

from funicular.rewards.sandbox.types import Limits
from tests.sandbox.programs import USUAL, BenignProgram, code, stdio

_NUMBERS = stdio(("3\n1 2 3\n", "6\n"), ("1\n-5\n", "-5\n"), ("4\n10 20 30 40", "100\n"))


def _sums(name: str, source: str) -> BenignProgram:
    """One style of reading: a count, then numbers; prints their sum."""
    return BenignProgram(name=name, source=code(source), tests=_NUMBERS)


def prints(
    name: str, source: str, expected: str, *, given: str = "", limits: Limits = USUAL, needs: str = ""
) -> BenignProgram:
    """A program that prints this."""
    return BenignProgram(
        name=name, source=code(source), tests=stdio((given, code(expected))), limits=limits, needs=needs
    )


READING = (
    _sums("input_twice", "n = int(input())\nprint(sum(map(int, input().split())))\n"),
    _sums("read_all", "import sys\nprint(sum(map(int, sys.stdin.read().split()[1:])))\n"),
    _sums(
        "readline",
        """
        import sys
        sys.stdin.readline()
        print(sum(int(x) for x in sys.stdin.readline().split()))
        """,
    ),
    _sums(
        "readlines",
        """
        import sys
        lines = sys.stdin.readlines()
        print(sum(map(int, lines[1].split())))
        """,
    ),
    _sums(
        "iterate_stdin",
        """
        import sys
        rows = [line.split() for line in sys.stdin]
        print(sum(map(int, rows[1])))
        """,
    ),
    _sums(
        "read_buffer",
        """
        import sys
        print(sum(map(int, sys.stdin.buffer.read().split()[1:])))
        """,
    ),
    _sums(
        "patched_input",
        """
        import sys
        input = sys.stdin.readline
        n = int(input())
        print(sum(map(int, input().split())))
        """,
    ),
    _sums("open_0", "data = open(0).read().split()\nprint(sum(map(int, data[1:])))\n"),
    _sums(
        "os_read",
        """
        import os
        data = os.read(0, 1 << 20).split()
        os.write(1, b'%d\\n' % sum(map(int, data[1:])))
        """,
    ),
    _sums(
        "fileinput",
        """
        import fileinput
        rows = list(fileinput.input())
        print(sum(map(int, rows[1].split())))
        """,
    ),
    _sums(
        "until_eof",
        """
        total = []
        try:
            while True:
                total.append(input())
        except EOFError:
            pass
        print(sum(map(int, total[1].split())))
        """,
    ),
    _sums(
        "fdopen",
        """
        import os
        with os.fdopen(0, 'rb') as f:
            print(sum(map(int, f.read().split()[1:])))
        """,
    ),
    _sums(
        "io_wrapper",
        """
        import io, sys
        sys.stdin = io.TextIOWrapper(io.BytesIO(sys.stdin.buffer.read()))
        print(sum(map(int, sys.stdin.read().split()[1:])))
        """,
    ),
    _sums(
        "mmap_stdin",
        """
        import mmap, os
        data = mmap.mmap(0, os.fstat(0).st_size, prot=mmap.PROT_READ)[:]
        print(sum(map(int, data.split()[1:])))
        """,
    ),
    _sums(
        "main_guard",
        """
        def main():
            input()
            print(sum(map(int, input().split())))

        if __name__ == '__main__':
            main()
        """,
    ),
    _sums(
        "open_dev_stdin",
        """
        data = open('/dev/stdin').read().split()
        print(sum(map(int, data[1:])))
        """,
    ),
    _sums(
        "csv_reader",
        """
        import csv, sys
        rows = list(csv.reader(sys.stdin, delimiter=' '))
        print(sum(map(int, rows[1])))
        """,
    ),
    _sums(
        "unbuffered_wrapper",
        """
        import os, sys
        from io import BytesIO, IOBase
        class FastIO(IOBase):
            def __init__(self):
                self.buffer = BytesIO()
            def readline(self):
                while True:
                    b = os.read(0, max(os.fstat(0).st_size, 8192))
                    if not b:
                        break
                    ptr = self.buffer.tell()
                    self.buffer.seek(0, 2), self.buffer.write(b), self.buffer.seek(ptr)
                return self.buffer.readline()
        stdin = FastIO()
        stdin.readline()
        print(sum(map(int, stdin.readline().split())))
        """,
    ),
)

WRITING = (
    prints("big_output", "print('x' * 1_000_000)\n", "x" * 1_000_000 + "\n"),
    prints(
        "many_lines",
        """
        for n in range(100_000):
            print(n)
        """,
        "".join(f"{n}\n" for n in range(100_000)),
    ),
    prints("write_and_exit", "import sys\nsys.stdout.write('done')\nsys.exit()\n", "done"),
    prints("exit_at_the_end", "print(7)\nexit(0)\n", "7\n"),
    prints("atexit", "import atexit\natexit.register(print, 'last')\nprint('first')\n", "first\nlast\n"),
    prints(
        "stderr_too",
        """
        import sys
        print('noise' * 100_000, file=sys.stderr)
        print('signal')
        """,
        "signal\n",
    ),
    prints("windows_newlines", "print('a\\r\\nb\\r', end='\\n\\n')\n", "a\nb\n"),
    prints(
        "unicode",
        """
        print('naïve Ünïcödé 漢字 🚡', len('🚡'))
        print(input()[::-1])
        """,
        """
        naïve Ünïcödé 漢字 🚡 1
        🚡é漢
        """,
        given="漢é🚡\n",
    ),
    prints(
        "unicode_names",
        """
        größe = {'π': 3}
        class Ключ: pass
        print(größe['π'], Ключ.__name__)
        """,
        "3 Ключ\n",
    ),
    prints(
        "buffer_and_flush",
        """
        import sys
        sys.stdout.buffer.write(b'a')
        sys.stdout.flush()
        print('b', flush=True)
        """,
        "ab\n",
    ),
    prints(
        "pprint_and_format",
        """
        from pprint import pprint
        pprint({'b': 1, 'a': [1, 2]})
        print(f'{3.14159:8.3f}|{42:#x}|{1e6:,.0f}')
        """,
        """
        {'a': [1, 2], 'b': 1}
           3.142|0x2a|1,000,000
        """,
    ),
    prints("warnings", "import warnings\nwarnings.warn('careful')\nprint('ok')\n", "ok\n"),
)

PROGRAMS = (*READING, *WRITING)
