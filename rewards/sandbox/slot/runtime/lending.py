"""Which names tests get from where, if they read them and do not bind them: a candidate must not choose.

A candidate that defines `abs` or `isclose` would otherwise stand between the tests and what they mean by it.
"""

from __future__ import annotations

import builtins
import collections
import copy
import decimal
import fractions
import functools
import math
import sys

from funicular.rewards.sandbox.types import TesterStyle

IMPORTED = frozenset(
    ("cmath", "collections", "datetime", "decimal", "fractions", "functools", "itertools", "math", "random", "re")
)
"""Where tests use one of these without importing it, they counted on a solution that does."""
HELPERS = {
    name: getattr(module, name)
    for module, names in (
        (math, ("isclose", "fabs", "floor", "ceil", "sqrt", "isnan", "isinf", "fsum", "prod")),
        (copy, ("deepcopy",)),
        (functools, ("reduce",)),
        (collections, ("Counter", "OrderedDict", "defaultdict", "deque", "namedtuple")),
        (decimal, ("Decimal",)),
        (fractions, ("Fraction",)),
    )
    for name in names
}
"""What tests mean by these names where they do not import them."""
_OF_TEST_LIBRARIES = ("np", "numpy", "pd", "pandas", "pytest", "approx", "raises", "allclose", "array_equal")
_NEVER_LENT = frozenset(
    (*sys.stdlib_module_names, *vars(builtins), *HELPERS, *_OF_TEST_LIBRARIES, "TestCase", "check", "candidate")
)


def may_lend(name: str, taken: set[str], style: TesterStyle, entry_point: str | None) -> bool:
    """Whether tests that read a global name mean the candidate's.

    Where the function under test is known by name, helpers come from the prelude, not from the candidate. A function
    named like a builtin (MBPP has `sum`) is lent where statements read no other name, so that it must be what they
    test; a test file reads such names for its own purposes.

    Args:
        taken: all global names that the tests read and do not bind.
    """
    if name == entry_point:
        return True
    if style is TesterStyle.HUMANEVAL:
        return False
    return name not in _NEVER_LENT or (style is TesterStyle.ASSERTS and taken == {name})
