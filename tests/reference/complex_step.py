"""Derivatives by the complex step: f'(x) = Im f(x + ih) / h, exact to rounding for h = 1e-100.

A derivative rides in the imaginary part, so that stopping a gradient is dropping that part. Comparisons look at the
real part, as a one-sided derivative does. Squire and Trapp, SIAM Review 40 (1998).
"""

import cmath
from collections.abc import Callable, Sequence

STEP = 1e-100


def stopped(x: complex) -> complex:
    """sg[x]: the value without its derivative."""
    return complex(x.real, 0.0)


def exp(x: complex) -> complex:
    return cmath.exp(x)


def smaller(x: complex, y: complex) -> complex:
    return x if x.real <= y.real else complex(y)


def larger(x: complex, y: complex) -> complex:
    return x if x.real >= y.real else complex(y)


def clipped(x: complex, low: float, high: float) -> complex:
    return smaller(larger(x, low), high)


def gradient(function: Callable[[list[complex]], complex], at: Sequence[float]) -> list[float]:
    """The derivatives of `function` by each entry of `at`."""
    derivatives = []
    for k in range(len(at)):
        point = [complex(value, STEP if j == k else 0.0) for j, value in enumerate(at)]
        derivatives.append(function(point).imag / STEP)
    return derivatives
