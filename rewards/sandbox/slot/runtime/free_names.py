"""Which names test code takes from outside: those alone are lent to it from the candidate.

A candidate could define `isclose` or `pytest` to shadow what the tests import. A name that the tests bind
themselves, or never read, is therefore never injected.
"""

from __future__ import annotations

import symtable
from collections.abc import Iterable


def free_names(sources: Iterable[str]) -> set[str]:
    """Global names that pieces of one module read and that none of them binds; pieces that do not parse have none."""
    read: set[str] = set()
    bound: set[str] = set()
    for source in sources:
        try:
            table = symtable.symtable(source, "tests", "exec")
        except (SyntaxError, ValueError, RecursionError):
            continue  # compiling it for the run reports it
        _collect(table, read, bound)
    return read - bound


def _collect(table: symtable.SymbolTable, read: set[str], bound: set[str]) -> None:
    is_module = table.get_type() == "module"
    for symbol in table.get_symbols():
        if not (is_module or symbol.is_global()):
            continue
        if symbol.is_referenced():
            read.add(symbol.get_name())
        if symbol.is_assigned() or symbol.is_imported() or (is_module and symbol.is_namespace()):
            bound.add(symbol.get_name())
    for child in table.get_children():
        _collect(child, read, bound)
