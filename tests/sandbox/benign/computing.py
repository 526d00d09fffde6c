"""Programs that compute: recursion, large numbers, numpy, the standard library."""

from __future__ import annotations

from tests.sandbox.benign.reading import prints

COMPUTING = (
    prints(
        "recursion",
        """
        import sys
        sys.setrecursionlimit(20_000)
        def depth(n):
            return 0 if n == 0 else 1 + depth(n - 1)
        print(depth(15_000))
        """,
        "15000\n",
    ),
    prints(
        "recursion_within_the_usual",
        """
        def depth(n):
            return 0 if n == 0 else 1 + depth(n - 1)
        print(depth(950))
        """,
        "950\n",
    ),
    prints(
        "recursion_in_a_large_thread",
        """
        import sys, threading
        sys.setrecursionlimit(1 << 20)
        threading.stack_size(1 << 27)
        def depth(n):
            return 0 if n == 0 else 1 + depth(n - 1)
        def main():
            print(depth(100_000))
        thread = threading.Thread(target=main)
        thread.start()
        thread.join()
        """,
        "100000\n",
    ),
    prints(
        "recursion_error_caught",
        """
        def f():
            return f()
        try:
            f()
        except RecursionError:
            print('caught')
        """,
        "caught\n",
    ),
    prints(
        "large_integers",
        "print(len(str(2 ** 10_000)), pow(3, 10**18, 10**9 + 7), 10**50 // 7 % 1000)\n",
        f"3011 {pow(3, 10**18, 10**9 + 7)} {10**50 // 7 % 1000}\n",
    ),
    prints(
        "lifted_digit_limit",
        """
        import sys
        sys.set_int_max_str_digits(0)
        print(len(str(10 ** 9_000)))
        """,
        "9001\n",
    ),
    prints(
        "decimal_fraction",
        """
        from decimal import Decimal, getcontext
        from fractions import Fraction
        getcontext().prec = 30
        print(Decimal(1) / 7, Fraction(3, 4) + Fraction(1, 4))
        """,
        "0.142857142857142857142857142857 1\n",
    ),
    prints(
        "complex_and_math",
        """
        import cmath, math
        print(round(abs(cmath.exp(1j)), 6), math.gcd(84, 36), math.comb(10, 3), math.isqrt(99))
        """,
        "1.0 12 120 9\n",
    ),
    prints(
        "random_seeded",
        """
        import random
        random.seed(7)
        print(random.Random(7).random() == random.random())
        """,
        "True\n",
    ),
    prints("large_list", "x = list(range(2_000_000))\nprint(sum(x))\n", "1999999000000\n"),
    prints(
        "bytes_and_struct",
        """
        import struct
        print(struct.unpack('<I', bytes([1, 2, 0, 0]))[0], b'ab'.hex(), int.from_bytes(b'\\xff\\x00'))
        """,
        "513 6162 65280\n",
    ),
    prints(
        "sieve",
        """
        n = 200_000
        s = bytearray([1]) * n
        s[:2] = b'\\0\\0'
        for i in range(2, 448):
            if s[i]:
                s[i*i::i] = bytes(len(range(i*i, n, i)))
        print(sum(s))
        """,
        "17984\n",
    ),
)

LIBRARY = (
    prints(
        "heapq_bisect_deque",
        """
        import bisect, heapq
        from collections import deque
        h = [5, 1, 3]
        heapq.heapify(h)
        q = deque([1, 2], maxlen=2)
        q.append(3)
        print(heapq.heappop(h), bisect.bisect([1, 3, 5], 4), list(q))
        """,
        "1 2 [2, 3]\n",
    ),
    prints(
        "collections",
        """
        from collections import Counter, OrderedDict, defaultdict, namedtuple
        P = namedtuple('P', 'x y')
        d = defaultdict(list)
        d['a'].append(P(1, 2))
        print(Counter('abca').most_common(1), d['a'][0].y)
        """,
        "[('a', 2)] 2\n",
    ),
    prints(
        "itertools_functools",
        """
        from functools import cache, reduce
        from itertools import accumulate, permutations
        @cache
        def fib(n):
            return n if n < 2 else fib(n - 1) + fib(n - 2)
        print(fib(80), list(accumulate([1, 2, 3])), len(list(permutations(range(5)))))
        print(reduce(lambda a, b: a * b, [1, 2, 3]))
        """,
        "23416728348467685 [1, 3, 6] 120\n6\n",
    ),
    prints(
        "regular_expressions",
        """
        import re
        print(re.findall(r'(\\w+)@(\\w+)', 'a@b, c@d'), re.sub(r'\\s+', ' ', 'a  b'))
        """,
        "[('a', 'b'), ('c', 'd')] a b\n",
    ),
    prints(
        "json_csv_base64",
        """
        import base64, csv, io, json
        print(json.loads(json.dumps({'a': [1, None]})), list(csv.reader(io.StringIO('a,b'))))
        print(base64.b64encode(b'hi').decode())
        """,
        "{'a': [1, None]} [['a', 'b']]\naGk=\n",
    ),
    prints(
        "hashlib_zlib",
        """
        import hashlib, zlib
        print(hashlib.sha256(b'').hexdigest()[:8], zlib.decompress(zlib.compress(b'x' * 1000)) == b'x' * 1000)
        """,
        "e3b0c442 True\n",
    ),
    prints(
        "datetime",
        """
        from datetime import date, datetime, timedelta
        print(date(2024, 2, 28) + timedelta(days=2), datetime(2024, 1, 1).strftime('%A'))
        """,
        "2024-03-01 Monday\n",
    ),
    prints(
        "dataclasses_enum_typing",
        """
        from dataclasses import dataclass, field
        from enum import Enum
        from typing import Optional
        class C(Enum):
            RED = 1
        @dataclass(order=True)
        class P:
            x: int
            y: Optional[list] = field(default_factory=list)
        print(sorted([P(2), P(1)])[0], C.RED.name)
        """,
        "P(x=1, y=[]) RED\n",
    ),
    prints(
        "abc_protocol_match",
        """
        from abc import ABC, abstractmethod
        class A(ABC):
            @abstractmethod
            def f(self): ...
        class B(A):
            def f(self):
                return 5
        match [1, B().f()]:
            case [1, int(n)] if n > 4:
                print('matched', n)
        """,
        "matched 5\n",
    ),
    prints(
        "generators_and_contexts",
        """
        from contextlib import contextmanager, redirect_stdout
        import io
        @contextmanager
        def c():
            yield 3
        def g():
            x = yield 1
            yield x * 2
        h = g()
        next(h)
        b = io.StringIO()
        with c() as n, redirect_stdout(b):
            print(n)
        print(h.send(21), repr(b.getvalue()))
        """,
        "42 '3\\n'\n",
    ),
    prints(
        "metaclasses_and_slots",
        """
        class M(type):
            def __new__(m, n, b, d):
                d['tag'] = n.lower()
                return super().__new__(m, n, b, d)
        class T(metaclass=M):
            __slots__ = ('a',)
        t = T()
        t.a = 1
        print(T.tag, t.a)
        """,
        "t 1\n",
    ),
    prints(
        "pickle_copy",
        """
        import copy, pickle
        x = {'a': [1, {2}]}
        print(pickle.loads(pickle.dumps(x)) == copy.deepcopy(x))
        """,
        "True\n",
    ),
    prints(
        "statistics_array",
        """
        import statistics
        from array import array
        print(statistics.median([3, 1, 2]), array('i', [1, 2]).tolist(), statistics.pstdev([1, 3]))
        """,
        "2 [1, 2] 1.0\n",
    ),
    prints(
        "string_textwrap_difflib",
        """
        import difflib, string, textwrap
        print(string.ascii_lowercase[:3], textwrap.shorten('a bb ccc', 6, placeholder='~'))
        print(difflib.get_close_matches('appel', ['apple']))
        """,
        "abc a bb~\n['apple']\n",
    ),
    prints(
        "sqlite_in_memory",
        """
        import sqlite3
        c = sqlite3.connect(':memory:')
        c.execute('create table t (x)')
        c.executemany('insert into t values (?)', [(1,), (2,)])
        print(c.execute('select sum(x) from t').fetchone()[0])
        """,
        "3\n",
        needs="sqlite3",
    ),
    prints(
        "eval_exec_compile_ast",
        """
        import ast
        ns = {}
        exec(compile('x = 2 ** 10', '<s>', 'exec'), ns)
        print(ns['x'], eval('1 + 1'), ast.literal_eval('[1, 2]'))
        """,
        "1024 2 [1, 2]\n",
    ),
    prints(
        "traceback_and_logging",
        """
        import logging, traceback
        try:
            1 / 0
        except ZeroDivisionError:
            print(traceback.format_exc().splitlines()[-1])
        logging.warning('to stderr')
        """,
        "ZeroDivisionError: division by zero\n",
    ),
    prints(
        "exception_groups",
        """
        try:
            raise ExceptionGroup('g', [ValueError(1), KeyError(2)])
        except* ValueError as e:
            print('values', len(e.exceptions))
        except* KeyError:
            print('keys')
        """,
        """
        values 1
        keys
        """,
    ),
    prints(
        "weakref_gc",
        """
        import gc, weakref
        class A: pass
        a = A()
        r = weakref.ref(a)
        del a
        gc.collect()
        print(r() is None)
        """,
        "True\n",
    ),
    prints(
        "platform_and_time",
        """
        import platform, sys, time
        t = time.perf_counter()
        time.sleep(0.01)
        print(time.perf_counter() > t, sys.version_info[0], platform.python_implementation())
        """,
        "True 3 CPython\n",
    ),
    prints(
        "doctest",
        """
        import doctest
        def f(n):
            '''
            >>> f(2)
            4
            '''
            return n * 2
        print(doctest.testmod().failed)
        """,
        "0\n",
    ),
    prints(
        "unittest_of_its_own",
        """
        import unittest
        class T(unittest.TestCase):
            def test_a(self):
                self.assertEqual(1, 1)
        r = unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(T))
        print(r.testsRun, r.wasSuccessful())
        """,
        "1 True\n",
    ),
)

PROGRAMS = (*COMPUTING, *LIBRARY)
