"""YAML as nodes that know their line, with a loader that builds plain values only and executes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from funicular.launch.problems import Problem

_PREFIX = "tag:yaml.org,2002:"


class Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars: `no`, `12:30` and `2024-01-01` are text, `1e-5` is a number."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own registry, filled below)

    def plain_tag(self, text: str) -> str:
        """The tag that a scalar without quotes and tag has."""
        return str(self.resolve(yaml.ScalarNode, text, (True, False)))


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?(?:0|[1-9][0-9_]*)$", list("-+0123456789")),
    (
        "float",
        r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+0123456789."),
    ),
):
    Loader.add_implicit_resolver(_PREFIX + _tag, re.compile(_pattern), _first)


def parse_file(path: Path, shown: str) -> tuple[Loader, yaml.MappingNode | None, list[Problem]]:
    """A recipe's loader, root mapping and what is wrong with the text.

    Args:
        shown: the path as messages name it.

    Returns:
        The root is None for an empty file and for one whose values cannot be built.
    """
    loader = Loader("")
    try:
        loader = Loader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
    except (OSError, UnicodeDecodeError) as error:
        return loader, None, [Problem(where=shown, expected=f"cannot be read as UTF-8 text: {error}")]
    except yaml.YAMLError as error:
        return loader, None, [Problem(where=_error_place(error, shown), expected=error_text(error))]
    if root is None:
        return loader, None, []
    problems = list(_unusable(loader, root, "", shown, ()))
    if problems:
        return loader, None, problems
    if not isinstance(root, yaml.MappingNode):
        expected = "a recipe is a mapping of keys to values"
        return loader, None, [Problem(where=place(shown, root), expected=expected)]
    return loader, root, list(_duplicates(root, "", shown))


def parse_value(text: str, *, as_text: bool) -> Any:
    """One value from the command line.

    Text without quotes stands as it is written, `:` and `#` included; null is null.

    Raises:
        yaml.YAMLError: not valid YAML, or a value that is not plain.
    """
    loader = Loader(text)
    if as_text and text[:1] not in ("'", '"') and loader.plain_tag(text) != f"{_PREFIX}null":
        return text
    node = loader.get_single_node()
    if node is None:
        return None
    for problem in _unusable(loader, node, "", "", ()):
        raise yaml.YAMLError(problem.expected)
    return value_of(loader, node, as_text=as_text)


def value_of(loader: Loader, node: yaml.Node, *, as_text: bool = False) -> Any:
    """The plain value of a node; a scalar's own text where text is wanted and it is not null."""
    value = loader.construct_object(node, deep=True)
    return node.value if as_text and isinstance(node, yaml.ScalarNode) and value is not None else value


class _Dumper(yaml.SafeDumper):
    """Writes what `Loader` and YAML 1.1 readers both read back as it was; line ends stay inside quotes."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        f"{_PREFIX}str",
        text,
        style='"' if "\n" in text or Loader("").plain_tag(text) != f"{_PREFIX}str" else None,
    ),
)


def one_line(value: Any) -> str:
    """A value as YAML writes it, on one line."""
    text: str = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def show_value(value: Any) -> str:
    """A value on one line, cut when long: for messages."""
    text = one_line(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def place(shown: str, node: yaml.Node) -> str:
    """`file:line` of a node."""
    return f"{shown}:{node.start_mark.line + 1}"


def error_text(error: yaml.YAMLError) -> str:
    """A syntax error on one line."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return f"not valid YAML: {' '.join(str(error).split())}"
    parts = [part for part in (error.context, error.problem) if part]
    column = f" (column {error.problem_mark.column + 1})" if error.problem_mark else ""
    return f"not valid YAML: {', '.join(parts)}{column}"


def _error_place(error: yaml.YAMLError, shown: str) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"{shown}:{mark.line + 1}" if mark else shown


def _unusable(loader: Loader, node: yaml.Node, key: str, shown: str, above: tuple[yaml.Node, ...]) -> Iterator[Problem]:
    """Tags, keys that are not scalars, and aliases that contain themselves: what has no plain value."""
    where = place(shown, node)
    if any(node is ancestor for ancestor in above):
        yield Problem(where=where, key=key, expected="an alias that contains itself has no value")
        return
    if isinstance(node, yaml.ScalarNode):
        usual = {f"{_PREFIX}str", loader.plain_tag(node.value)}
    else:
        usual = {f"{_PREFIX}seq", f"{_PREFIX}map"}
    if node.tag not in usual:
        tag = node.tag.replace(_PREFIX, "!!")
        yield Problem(where=where, key=key, expected=f"the tag {tag} is not read; recipes hold plain values only")
        return
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _unusable(loader, item, key, shown, (*above, node))
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                yield Problem(where=place(shown, key_node), key=key, expected="a key must be a word")
                continue
            name = f"{key}.{key_node.value}" if key else str(key_node.value)
            yield from _unusable(loader, key_node, name, shown, ())
            yield from _unusable(loader, value_node, name, shown, (*above, node))


def _duplicates(node: yaml.Node, prefix: str, shown: str) -> Iterator[Problem]:
    """A key that stands twice in one mapping, at any depth."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _duplicates(item, prefix, shown)
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = f"{prefix}{key_node.value}"
            line = key_node.start_mark.line + 1
            if key in first:
                expected = f"the key stands twice in this section, first on line {first[key]}"
                yield Problem(where=f"{shown}:{line}", key=key, expected=expected, nearest="Remove one")
            first.setdefault(key, line)
            yield from _duplicates(value_node, f"{key}.", shown)
