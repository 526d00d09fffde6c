"""The keys of a recipe, read off the schema: name, type, default and the text under the field.

Nothing here is kept by hand: types come from annotations, texts from the string that follows each field in
the source of its dataclass.
"""

from __future__ import annotations

import ast
import inspect
import sys
import types
import typing
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from itertools import pairwise
from typing import Any

from funicular.launch.config import Config

_NAMES = {int: "int", float: "float", bool: "bool", str: "text", list[str]: "list of text", list[int]: "list of int"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key that a recipe may set."""

    name: str
    """Dotted: `algorithm.beta`."""
    base: Any
    """int, float, bool, str, a Literal, list[str], list[int] or dict[str, …]; `| None` is taken off."""
    optional: bool
    """Whether null is allowed."""
    default: Any
    doc: str

    @property
    def choices(self) -> tuple[str, ...]:
        """Values of a Literal; empty for other types."""
        return typing.get_args(self.base) if typing.get_origin(self.base) is typing.Literal else ()

    @property
    def is_map(self) -> bool:
        """Whether the value is a mapping with free keys, such as `reward.functions`."""
        return typing.get_origin(self.base) is dict

    @property
    def is_text(self) -> bool:
        """Whether a scalar is taken as it is written, `1e3` and `no` included."""
        return self.base is str or bool(self.choices)

    @property
    def type_text(self) -> str:
        """For people: `int`, `float or null`, `grpo | dr_grpo | bnpo`, `map of float`."""
        if self.choices:
            text = " | ".join(self.choices)
        elif self.is_map:
            text = f"map of {_NAMES.get(typing.get_args(self.base)[1], 'values')}"
        else:
            text = _NAMES[self.base]
        return f"{text} or null" if self.optional else text


@cache
def keys() -> dict[str, Key]:
    """Every key by its dotted name, top-level keys first, then sections in the order of `Config`."""
    found = list(_keys_of(Config, ""))
    return {key.name: key for key in sorted(found, key=lambda key: "." in key.name)}


@cache
def sections() -> tuple[str, ...]:
    """Names of the sections."""
    return tuple(dict.fromkeys(name.split(".")[0] for name in keys() if "." in name))


def _keys_of(schema: type, prefix: str) -> typing.Iterator[Key]:
    hints = typing.get_type_hints(schema)
    docs = _field_docs(schema)
    for item in fields(schema):
        annotation = hints[item.name]
        if is_dataclass(annotation):
            yield from _keys_of(typing.cast(type, annotation), f"{prefix}{item.name}.")
            continue
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        members = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
        yield Key(
            name=prefix + item.name,
            base=next(member for member in members if member is not type(None)),
            optional=type(None) in members,
            default=default,
            doc=docs.get(item.name, ""),
        )


def _field_docs(schema: type) -> dict[str, str]:
    """Field name to the string that stands right under it, on one line."""
    tree = ast.parse(inspect.getsource(sys.modules[schema.__module__]))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == schema.__name__)
    docs = {}
    for statement, following in pairwise(body):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs
