"""Whether two mathematical expressions are equivalent: math-verify, warmed and without its time limits.

Its own limits use SIGALRM, which fails silently off the main thread; whoever calls kills the process instead.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

Reading = list[Any]
"""What math-verify read: the parsed expression and its text, or nothing."""

_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_WARM_UP = (
    ("1", r"$1$"),
    ("1", "the answer is 2."),
    (r"\frac{1}{2}", r"so \boxed{\dfrac{2}{4}}"),
    (r"\frac{1}{3}", "it is 0.25, or 25%"),
    (r"12\%", r"$0.12$"),
    (r"2\sqrt{3}+\pi", r"$\sqrt{12} + \pi$"),
    (r"\frac{\sqrt{5}}{5}", r"$\frac{1}{\sqrt{5}}$"),
    (r"\frac{\pi}{6}", r"$\frac{\pi}{7}$"),
    (r"3 + 4i", r"$4i + 3$"),
    (r"x^2+2x+1", r"$(x+1)^2$"),
    (r"\frac{y^2-1}{y+2}", r"$y - 2 + \frac{3}{y+2}$"),
    (r"k(k-1)", r"$k^2 - k$"),
    (r"4 \pi r^2 h", r"$\frac{8 h \pi r^2}{2}$"),
    (r"e^{3t} \cos(2t)", r"$\cos(2t) e^{t+2t}$"),
    (r"\sin(x) + \tan(x)", r"$\cos(x)$"),
    (r"\log_3 9 + \ln 2", r"$2 + \ln 2$"),
    (r"\log_5 25", "$3$"),
    (r"2^{n-1}", r"$\frac{2^n}{2}$"),
    (r"\binom{5}{2} + 3!", "$16$"),
    (r"(1, 2)", r"\boxed{(1, \frac{4}{2})}"),
    (r"(0, -\frac{3}{2}, \sqrt{2})", r"$(0, -\frac{6}{4}, \sqrt{2})$"),
    (r"\{1, 2, 3\}", r"$\{3, 2, 1\}$"),
    (r"[0, \infty)", r"$x \ge 0$"),
    (r"(-\infty, 2) \cup (3, 5]", r"$(-\infty, 2) \cup [3, 5]$"),
    (r"x < 4", r"$4 > x$"),
    (r"x = 3", r"$x = 3.0$"),
    (r"y = 2x + 1", r"$y - 2x = 1$"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"$\begin{pmatrix} 1 & 2 \\ 3 & 5 \end{pmatrix}$"),
    (r"60^\circ", "$60$"),
    (r"2m(m+3)", r"$2m^2+6m$"),
    (r"x^3 - 3x + 1", r"$1 - 3x + x^3$"),
    (r"\frac{a+b}{c-d}", r"$-\frac{a+b}{d-c}$"),
    (r"xy + z^2 - 4ac", r"$z^2 - 4ac + xy$"),
    (r"-\frac{7}{3}", "the answer is -2.3"),
    (r"\left(-4, 5\right)", r"$(-4, 6)$"),
    (r"1.5 \times 10^{-3}", r"$0.0015$"),
    (r"\$12.50", r"$12.5 \text{ dollars}$"),
    (r"x \in [1, 3]", r"$1 \le x \le 3$"),
    (r"\sqrt{a^2 + b^2}", r"$\sqrt{b^2 + a^2}$"),
    (r"\frac{1}{2 - \sqrt{3}}", r"$2 + \sqrt{3}$"),
    (r"\frac{2 + \sqrt{10}}{3}", r"$\frac{2 - \sqrt{10}}{3}$"),
    (r"\text{even}", r"$\text{odd}$"),
    (r"\frac{2}{7}", r"$x = 2/7$"),
    (r"\frac{5}{16}", r"$p = \frac{5}{16}$"),
    (r"-8", r"$t = -8$"),
    (r"9", r"$a + b = 9$"),
    (r"3\sqrt{6}", r"$AB = \sqrt{54}$"),
    (r"\frac{4}{9}", r"$P(B) = \frac{4}{9}$"),
    (r"\frac{x}{x+1}", r"$f(x) = \frac{x}{x+1}$"),
    (r"\frac{3\pi}{5}", r"\boxed{3\pi/5}"),
    (r"(0, -2\pi)", r"\boxed{(0,-2\pi)}"),
    (r"\frac{1+\sqrt{3}}{2}", r"\boxed{\frac{1}{2} + \frac{\sqrt{3}}{2}}"),
    (r"3\sqrt{2} - 4", r"$-4 + 3\sqrt{2}$"),
    (r"y = \frac{3}{4}x + 1", r"\boxed{y = \frac{3x}{4} + 1}"),
    (r"(x-4)(x+4)", r"\boxed{(x+4)(x-4)}"),
    (r"(3n+2)^2", r"$9n^2+12n+4$"),
    (r"\left(\frac{2}{5}\right)^3", r"\boxed{\frac{8}{125}}"),
    (r"3^{7}", r"$2187$"),
    (r"\log_3 7", r"$\frac{\ln 7}{\ln 3}$"),
    (r"\cot x", r"$\frac{\cos x}{\sin x}$"),
    (r"\frac{k(k-1)}{3}", r"$\frac{k^2-k}{3}$"),
)


def warm_up() -> None:
    """Import sympy and math-verify, and fill their caches and parser tables, so that a fork of this process
    compares in milliseconds. Takes some seconds."""
    # Once per process it warns that it has no time limit, which here is on purpose.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    for reference, text in _WARM_UP:
        equivalent(reference, read_text(text))


def equivalent(reference: str, reading: Reading) -> bool:
    """Whether what was read is equivalent to the reference expression.

    Raises:
        ValueError: math-verify cannot parse the reference.
    """
    from math_verify import verify

    expected = _read_reference(reference)
    if not expected:
        raise ValueError(f"math: cannot parse the reference answer {reference!r}; expected LaTeX or a number")
    return bool(reading) and bool(verify(expected, reading, timeout_seconds=None))


def read_expression(expression: str) -> Reading:
    """Read an expression, LaTeX or plain, with or without delimiters. Empty: it is none."""
    bare = undelimited(expression)
    for form in (f"${bare}$", bare):
        reading = read_text(form)
        # A string is only the text again, not something that was parsed.
        if any(not isinstance(part, str) for part in reading):
            return reading
    return []


def read_text(text: str) -> Reading:
    """Read the expression that a text ends in, as math-verify looks for it."""
    from math_verify import parse

    return parse(text, parsing_timeout=None)


def undelimited(expression: str) -> str:
    """The expression without math delimiters and a full stop around it."""
    bare = expression.strip().removesuffix(".")
    for opening, closing in _DELIMITERS:
        if len(bare) > len(opening) + len(closing) and bare.startswith(opening) and bare.endswith(closing):
            inside = bare[len(opening) : -len(closing)]
            return inside.strip() if opening not in inside else bare
    return bare


@lru_cache(maxsize=256)
def _read_reference(reference: str) -> Reading:
    return read_expression(reference)
