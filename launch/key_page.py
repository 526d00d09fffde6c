"""Every key of a recipe as a page of the documentation: `funicular config keys --markdown` makes docs/keys.md."""

from __future__ import annotations

from funicular.launch.schema_docs import Key, keys, sections
from funicular.launch.yaml_nodes import show_value

_HEAD = """# Keys of a recipe

Made by `funicular config keys --markdown` from the schema; not edited by hand. How recipes are written, composed and
overridden: [configuration](configuration.md).
"""


def key_page() -> str:
    """Markdown: a table for the top level, then one for each section."""
    by_section: dict[str, list[Key]] = {"": [], **{section: [] for section in sections()}}
    for name, key in keys().items():
        by_section[name.rpartition(".")[0]].append(key)
    tables = (_table(section, found) for section, found in by_section.items())
    return "\n".join([_HEAD, *tables])


def _table(section: str, found: list[Key]) -> str:
    title = f"## {section}" if section else "## Top level"
    cells = ((f"`{key.name}`", key.type_text, f"`{show_value(key.default)}`", key.doc) for key in found)
    rows = (f"| {' | '.join(map(_cell, row))} |" for row in cells)
    return "\n".join([title, "", "| key | type | default | |", "| --- | --- | --- | --- |", *rows, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
