"""The embedded task set: short sums, made by rule, the same on every machine for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from funicular.rewards.nearest import known_names

_ASK = "Answer with the number only."
_NAMES = ("Ann", "Ben", "Eva", "Max", "Mia", "Sam", "Tom", "Zoe")
_THINGS = ("apples", "books", "coins", "eggs", "pens", "stamps")

Question = tuple[str, int]


def _add1() -> Iterator[Question]:
    for a, b in product(range(2, 10), repeat=2):
        yield f"What is {a} + {b}? {_ASK}", a + b


def _add2() -> Iterator[Question]:
    for a, b in product(range(10, 50), repeat=2):
        yield f"What is {a} + {b}? {_ASK}", a + b


def _mul1() -> Iterator[Question]:
    for a, b in product(range(2, 10), repeat=2):
        yield f"What is {a} * {b}? {_ASK}", a * b


def _max3() -> Iterator[Question]:
    for a, b, c in product(range(10, 100, 3), range(11, 100, 3), range(12, 100, 3)):
        yield f"What is the largest of {a}, {b} and {c}? {_ASK}", max(a, b, c)


def _sub2() -> Iterator[Question]:
    for a, b in product(range(10, 100), repeat=2):
        if a > b:
            yield f"What is {a} - {b}? {_ASK}", a - b


# Word problems stay under 13 words: longer ones would share a 13-gram without their numbers, by template
# alone, and the contamination check would drop the held-out ones.
def _word1() -> Iterator[Question]:
    for name, thing, a, b in product(_NAMES, _THINGS, range(5, 30), range(2, 20)):
        yield f"{name} has {a} {thing} and gets {b} more. How many now?", a + b
        if a > b:
            yield f"{name} has {a} {thing} and loses {b}. How many are left?", a - b


def _word2() -> Iterator[Question]:
    for name, thing, a, b, c in product(_NAMES, _THINGS, range(6, 25, 2), range(2, 10), range(2, 10)):
        yield f"{name} has {a} {thing}, buys {b}, then gets {c}. How many now?", a + b + c
        if a + b > c:
            yield f"{name} has {a} {thing}, buys {b}, then loses {c}. How many now?", a + b - c


KINDS: dict[str, tuple[int, Callable[[], Iterator[Question]]]] = {
    "add1": (1, _add1),
    "mul1": (1, _mul1),
    "add2": (2, _add2),
    "max3": (2, _max3),
    "sub2": (3, _sub2),
    "word1": (3, _word1),
    "word2": (4, _word2),
}
"""Level (1 is easiest) and all questions of each kind."""
DEFAULT_KINDS = "add1,add2,mul1,max3"


def arithmetic_rows(kinds: str | None, size: int, seed: int) -> list[dict[str, Any]]:
    """Rows with columns prompt, answer, kind and level, without repeats.

    Kinds take turns until `size` rows are there; a kind that runs out (add1 and mul1 have 64 each) leaves its
    turns to the others.

    Args:
        kinds: names from KINDS, separated by commas; None: DEFAULT_KINDS.
        size: rows; fewer if the kinds have no more.

    Raises:
        ValueError: an unknown or repeated kind, or a size below 1.
    """
    if size < 1:
        raise ValueError(f"data.size={size}: expected at least 1")
    pools = {name: _shuffled(name, seed) for name in _kind_names(DEFAULT_KINDS if kinds is None else kinds)}
    rows: list[dict[str, Any]] = []
    while pools and len(rows) < size:
        for name in list(pools)[: size - len(rows)]:
            prompt, answer = pools[name].pop()
            rows.append({"prompt": prompt, "answer": str(answer), "kind": name, "level": KINDS[name][0]})
            if not pools[name]:
                del pools[name]
    return rows


def _kind_names(kinds: str) -> list[str]:
    names = [name.strip() for name in kinds.split(",")]
    for name in names:
        if name not in KINDS:
            raise ValueError(f"data.kinds={kinds}: no kind {name!r}; {known_names(name, KINDS)}")
    if len(set(names)) != len(names):
        raise ValueError(f"data.kinds={kinds}: a kind stands there twice; expected each once")
    return names


def _shuffled(name: str, seed: int) -> list[Question]:
    questions = list(KINDS[name][1]())
    random.Random(f"{seed}/{name}").shuffle(questions)
    return questions
