"""Finds recipe files and reads them, `defaults:` first, into flat entries that know their line.

Which keys exist is checked here; whether values fit them is `recipe.py`'s business.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from funicular.launch.key_names import nearest_section, not_a_section, unknown_key
from funicular.launch.problems import Problem
from funicular.launch.schema_docs import keys, sections
from funicular.launch.yaml_nodes import Loader, parse_file, place, show_value, value_of

PACKAGED = Path(__file__).resolve().parent / "recipes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One key as a source sets it."""

    key: str
    value: Any
    where: str


@dataclass(slots=True)
class Composition:
    """What reading recipes has collected so far."""

    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    """In the order in which they take effect."""


def packaged_recipes() -> list[str]:
    """Names of the recipes that ship with Funicular."""
    return sorted(path.stem for path in PACKAGED.glob("*.yaml"))


def find_recipe(name: str, base: Path) -> Path | None:
    """The file that `name` means: a path relative to `base`, else a packaged recipe, .yaml or not."""
    path = base / Path(name).expanduser()
    if path.is_file():
        return path.resolve()
    stem = _stem(name)
    return PACKAGED / f"{stem}.yaml" if stem in packaged_recipes() else None


def compose(name: str, base: Path, into: Composition, *, where: str, chain: tuple[Path, ...] = ()) -> None:
    """Read a recipe and, before it, its `defaults:`. Problems are collected, not raised.

    Args:
        name: as given with `-c` or in `defaults:`.
        base: folder that a relative path starts from.
        where: who named it, for messages.
        chain: the files whose `defaults:` led here.
    """
    path = find_recipe(name, base)
    if path is None:
        into.problems.append(_missing_recipe(name, base, where))
        return
    if path in chain:
        cycle = " -> ".join(display(step) for step in (*chain[chain.index(path) :], path))
        expected = f"recipes that include each other: {cycle}"
        into.problems.append(Problem(where=where, key="defaults", value=name, expected=expected))
        return
    shown = display(path)
    loader, root, problems = parse_file(path, shown)
    into.problems += problems
    for pair in root.value if root else ():
        if pair[0].value == "defaults":
            for base_name, line in _defaults(loader, pair[1], shown, into):
                compose(base_name, path.parent, into, where=line, chain=(*chain, path))
    into.files.append(path)
    for key_node, value_node in root.value if root else ():
        if key_node.value != "defaults":
            _read_key(loader, key_node, value_node, "", shown, into)


def display(path: Path) -> str:
    """A path as messages show it: relative to the working directory, or as `-c` finds a packaged recipe."""
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return f"recipes/{path.name}" if path.parent == PACKAGED else str(path)


def _stem(name: str) -> str:
    return name.removeprefix("recipes/").removesuffix(".yaml")


def _missing_recipe(name: str, base: Path, where: str) -> Problem:
    folder = (base / Path(name).expanduser()).parent
    local = [os.path.relpath(path, base) for path in sorted(folder.glob("*.yaml"))]
    near = get_close_matches(name, local, n=1) or get_close_matches(_stem(name), packaged_recipes(), n=1)
    packaged = ", ".join(packaged_recipes())
    return Problem(
        where=where,
        value=name,
        expected=f"no such file, seen from {base.resolve()}; packaged recipes are {packaged}",
        nearest=f"Did you mean {near[0]}?" if near else "",
    )


def _defaults(loader: Loader, node: yaml.Node, shown: str, into: Composition) -> Iterator[tuple[str, str]]:
    """Each name in a `defaults:` list, with the line that it stands on."""
    items: list[yaml.Node] = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in items):
        yield from ((str(item.value), place(shown, item)) for item in items)
        return
    into.problems.append(
        Problem(
            where=place(shown, node),
            key="defaults",
            value=show_value(value_of(loader, node)),
            expected="expected a list of recipes: files relative to this one, or names of packaged recipes",
            nearest="Write defaults: [NAME]",
        )
    )


def _read_key(
    loader: Loader, key_node: yaml.Node, value_node: yaml.Node, prefix: str, shown: str, into: Composition
) -> None:
    """Entries of one key, or of the section that it opens; unknown keys become problems, leaf by leaf."""
    name = f"{prefix}{key_node.value}"
    where = place(shown, key_node)
    is_mapping = isinstance(value_node, yaml.MappingNode)
    value = value_of(loader, value_node, as_text=name in keys() and keys()[name].is_text)
    if name in keys() and "." not in str(key_node.value):
        into.entries.append(Entry(key=name, value=value, where=where))
    elif name in sections():
        if is_mapping:
            for child_key, child in value_node.value:
                _read_key(loader, child_key, child, f"{name}.", shown, into)
        elif value is not None:  # a section whose keys are all commented out is null
            into.problems.append(not_a_section(name, show_value(value), where))
    elif is_mapping and value and nearest_section(name) is None:
        for child_key, child in value_node.value:
            _read_key(loader, child_key, child, f"{name}.", shown, into)
    else:
        into.problems.append(unknown_key(name, where, "" if is_mapping else show_value(value)))
