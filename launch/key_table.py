"""Prints the keys of a recipe: `funicular config keys`."""

from __future__ import annotations

import sys

from funicular.launch.key_names import nearest_key
from funicular.launch.schema_docs import Key, keys
from funicular.launch.yaml_nodes import show_value

_WIDEST = 40
"""Columns of plain text are aligned up to here; a longer list of choices moves its own line alone."""


def print_keys(wanted: str = "") -> int:
    """Every key whose name or text contains `wanted`: a table on a terminal, aligned text elsewhere.

    Returns:
        The exit status: 2 when no key matches.
    """
    rows = [key for key in keys().values() if wanted.lower() in f"{key.name} {key.doc}".lower()]
    if not rows:
        nearest = nearest_key(wanted)
        hint = f"; did you mean {nearest}?" if nearest else ""
        print(f"no key contains {wanted}{hint}", file=sys.stderr)
        return 2
    if sys.stdout.isatty():
        _print_table(rows)
    else:
        _print_plain(rows)
    return 0


def _print_plain(rows: list[Key]) -> None:
    cells = [(key.name, key.type_text, show_value(key.default), key.doc) for key in rows]
    widths = [min(_WIDEST, max(len(row[column]) for row in cells)) for column in range(3)]
    for name, type_text, default, doc in cells:
        print(f"{name:<{widths[0]}}  {type_text:<{widths[1]}}  {default:<{widths[2]}}  {doc}")


def _print_table(rows: list[Key]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("key", "type", "default", "meaning", box=None, pad_edge=False)
    for key in rows:
        table.add_row(*(Text(cell) for cell in (key.name, key.type_text, show_value(key.default), key.doc)))
    Console().print(table)
