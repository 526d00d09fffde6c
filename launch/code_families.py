"""The functions that the embedded code tasks ask for: what each is called, returns, and how it is solved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Takes = Literal["int", "text", "ints"]


@dataclass(frozen=True, slots=True)
class Family:
    """Functions of one argument `x` that differ in one number or letter, `{k}`; without `{k}` it is one function."""

    level: int
    """1 is easiest."""
    takes: Takes
    name: str
    says: str
    """What the function returns, in a few words: see `code_tasks.py` on 13 words in a row."""
    solution: str
    """The body of the reference solution."""
    values: tuple[Any, ...] = ("",)
    """Of `{k}`."""


_MANY = tuple(range(2, 31))
_FEW = tuple(range(2, 8))
_LETTERS = tuple("aeorstln")

_RUNNING_TOTAL = """\
totals, total = [], 0
    for n in x:
        total += n
        totals.append(total)
    return totals"""
_RUN_LENGTHS = """\
coded, count = "", 0
    for i, letter in enumerate(x):
        count += 1
        if i + 1 == len(x) or x[i + 1] != letter:
            coded, count = coded + letter + str(count), 0
    return coded"""

FAMILIES = (
    Family(1, "int", "add_{k}", "x plus {k}", "return x + {k}", _MANY),
    Family(1, "int", "subtract_{k}", "x minus {k}", "return x - {k}", _MANY),
    Family(1, "int", "times_{k}", "x times {k}", "return x * {k}", _MANY),
    Family(1, "int", "remainder_{k}", "x modulo {k}", "return x % {k}", _MANY),
    Family(1, "int", "power_{k}", "x to the power {k}", "return x ** {k}", _FEW),
    Family(1, "int", "square", "the square of x", "return x * x"),
    Family(1, "int", "is_even", "True if x is even, else False", "return x % 2 == 0"),
    Family(1, "int", "is_above_{k}", "True if x is above {k}, else False", "return x > {k}", _MANY),
    Family(1, "text", "upper", "the text x in upper case", "return x.upper()"),
    Family(1, "text", "text_length", "the length of the text x", "return len(x)"),
    Family(1, "ints", "largest", "the largest number in x", "return max(x)"),
    Family(1, "ints", "smallest", "the smallest number in x", "return min(x)"),
    Family(1, "ints", "total", "the sum of the list x", "return sum(x)"),
    Family(1, "ints", "sort", "the list x sorted", "return sorted(x)"),
    Family(2, "text", "reverse_text", "the text x reversed", "return x[::-1]"),
    Family(2, "ints", "reverse_list", "the list x reversed", "return x[::-1]"),
    Family(2, "text", "first_{k}", "the first {k} letters of x", "return x[:{k}]", _FEW),
    Family(2, "text", "last_{k}", "the last {k} letters of x", "return x[-{k}:]", _FEW),
    Family(2, "text", "repeat_{k}", "the text x repeated {k} times", "return x * {k}", _FEW),
    Family(2, "text", "count_{k}", 'how often "{k}" is in x', 'return x.count("{k}")', _LETTERS),
    Family(2, "text", "remove_{k}", 'x without the letter "{k}"', 'return x.replace("{k}", "")', _LETTERS),
    Family(2, "text", "starts_with_{k}", 'True if x starts with "{k}"', 'return x.startswith("{k}")', _LETTERS),
    Family(2, "ints", "add_{k}_to_each", "the list x with {k} added to each", "return [n + {k} for n in x]", _MANY),
    Family(2, "ints", "above_{k}", "the numbers in x above {k}", "return [n for n in x if n > {k}]", _MANY),
    Family(2, "ints", "sum_below_{k}", "the sum of n < {k} in x", "return sum(n for n in x if n < {k})", _MANY),
    Family(2, "ints", "multiples_of_{k}", "the multiples of {k} in x", "return [n for n in x if n % {k} == 0]", _FEW),
    Family(2, "text", "count_words", "the number of words in x", "return len(x.split())"),
    Family(3, "text", "reverse_words", "the words of x in reverse order", 'return " ".join(x.split()[::-1])'),
    Family(3, "text", "count_vowels", "the number of vowels in x", 'return sum(c in "aeiou" for c in x)'),
    Family(3, "text", "is_palindrome", "True if x is a palindrome", "return x == x[::-1]"),
    Family(3, "int", "digit_sum", "the sum of the digits of x", "return sum(int(d) for d in str(abs(x)))"),
    Family(3, "text", "longest_word", "the first longest word of x", "return max(x.split(), key=len)"),
    Family(3, "ints", "unique", "x without repeats, first ones kept", "return list(dict.fromkeys(x))"),
    Family(3, "ints", "running_total", "the running totals of x", _RUNNING_TOTAL),
    Family(3, "text", "run_lengths", "x run-length encoded, aab as a2b1", _RUN_LENGTHS),
)
