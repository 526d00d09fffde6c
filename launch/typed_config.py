"""Types a recipe entry by entry, so that one wrong value does not hide the next.

OmegaConf does the typing; its DictConfig never leaves this module.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from funicular.launch.config import Config
from funicular.launch.key_names import nearest_key, not_a_section, unknown_key
from funicular.launch.peer_names import PEER_VALUES
from funicular.launch.problems import Problem
from funicular.launch.recipe_files import Entry, packaged_recipes
from funicular.launch.schema_docs import Key, keys, sections
from funicular.launch.yaml_nodes import error_text, parse_value, show_value

COMMAND_LINE = "command line"
_OPTION = re.compile(r"((?:.*\.py:)?[^.]+)(?:\.(.+))?")
"""What follows `reward.options.`: a function's name, whose path may hold dots, and an argument of it."""


class TypedConfig:
    """OmegaConf's structured config under construction, with what was wrong with the entries so far."""

    def __init__(self) -> None:
        self._tree: DictConfig = OmegaConf.structured(Config)
        for node in (self._tree, *(self._tree[section] for section in sections())):
            OmegaConf.set_readonly(node, False)  # frozen dataclasses make read-only nodes
        self.origins: dict[str, str] = {}
        """Key to the place that set it."""
        self.problems: list[Problem] = []

    def apply(self, entry: Entry) -> None:
        """Set one known key, or collect why not."""
        key = keys()[entry.key]
        if self._fits(key, entry.value):
            self.origins[entry.key] = entry.where
            return
        shown = show_value(entry.value)
        if key.choices:
            word = shown.lower()
            near = PEER_VALUES.get((key.name, word)) or next(iter(get_close_matches(word, key.choices, n=1)), None)
            hint = f"Did you mean {near}?" if near else ""
            expected = f"expected one of {key.type_text}"
        else:
            hint = f"Its default is {show_value(key.default)}"
            expected = f"expected {key.type_text}, got {_kind(entry.value)}"
        self.problems.append(Problem(where=entry.where, key=entry.key, value=shown, expected=expected, nearest=hint))

    def apply_override(self, text: str) -> None:
        """Set what one `key=value` of the command line says, or collect why not."""
        name, equals, written = text.partition("=")
        in_map = next((key for key in keys().values() if key.is_map and name.startswith(f"{key.name}.")), None)
        if not equals or not written:
            self.problems.append(_not_an_override(text, name))
        elif name in sections():
            self.problems.append(not_a_section(name, written, COMMAND_LINE))
        elif name not in keys() and in_map is None:
            self.problems.append(unknown_key(name, COMMAND_LINE, written))
        else:
            try:
                value = parse_value(written, as_text=name in keys() and keys()[name].is_text)
            except yaml.YAMLError as error:
                expected = error_text(error)
                self.problems.append(Problem(where=COMMAND_LINE, key=name, value=written, expected=expected))
                return
            if in_map is None:
                self.apply(Entry(key=name, value=value, where=COMMAND_LINE))
            else:
                self._apply_in_map(in_map, name.removeprefix(f"{in_map.name}."), value)

    def missing(self) -> list[Problem]:
        """Keys that a recipe leaves open with `???`; they are set back to their defaults."""
        problems = []
        for name in sorted(OmegaConf.missing_keys(self._tree)):
            key = next(key for key in keys() if name == key or name.startswith(f"{key}."))
            where = self.origins.get(key, "")
            expected = "the recipe leaves this value to you"
            nearest = f"Add {name}=VALUE to the command line, or set it in a recipe of your own"
            problems.append(Problem(where=where, key=name, value="???", expected=expected, nearest=nearest))
            OmegaConf.update(self._tree, key, keys()[key].default, merge=False)
        return problems

    def config(self) -> Config:
        """The frozen dataclasses."""
        result = OmegaConf.to_object(self._tree)
        if not isinstance(result, Config):
            raise TypeError(f"OmegaConf built {type(result).__name__}, expected Config")
        return result

    def _fits(self, key: Key, value: Any) -> bool:
        """Sets the key if the value has its type."""
        if key.base is bool and value is not None and not isinstance(value, bool):  # OmegaConf would take 7 for true
            return False
        if key.base is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        try:
            OmegaConf.update(self._tree, key.name, _without_interpolation(value), merge=False)
        except OmegaConfBaseException:
            return False
        return True

    def _apply_in_map(self, key: Key, rest: str, value: Any) -> None:
        """`reward.functions.NAME=weight` and `reward.options.NAME.argument=value` add to the map."""
        current: Any = OmegaConf.to_container(OmegaConf.select(self._tree, key.name), resolve=True)
        option = _OPTION.fullmatch(rest) if key.type_text == "map of values" else None
        if option and option[2]:
            before = current.get(option[1])
            current[option[1]] = {**(before if isinstance(before, dict) else {}), option[2]: value}
        else:
            current[rest] = value
        places = (self.origins.get(key.name, COMMAND_LINE), COMMAND_LINE)
        self.apply(Entry(key=key.name, value=current, where=", ".join(dict.fromkeys(places))))


def _without_interpolation(value: Any) -> Any:
    """Escapes `${`, which opens an interpolation to OmegaConf and is plain text to a recipe."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)
    if isinstance(value, dict):
        return {name: _without_interpolation(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_interpolation(item) for item in value]
    return value


def _kind(value: Any) -> str:
    kinds = {bool: "a bool", int: "an int", float: "a float", str: "text", dict: "a map", list: "a list"}
    return "null" if value is None else kinds[type(value)]


def _not_an_override(text: str, name: str) -> Problem:
    expected, hint = "expected key=value", ""
    if text in ("--config", "--recipe"):
        hint = "A recipe is given with -c NAME"
    elif "=" in text:
        expected = "there is no value after ="
        if name in keys():
            hint = f"Write {name}=VALUE ({keys()[name].type_text}); its default is {show_value(keys()[name].default)}"
    elif text.endswith((".yaml", ".yml")) or text in packaged_recipes():
        hint = f"A recipe is given with -c {text}"
    elif nearest := nearest_key(name):
        hint = f"Did you mean {nearest}=VALUE ({keys()[nearest].type_text})?"
    return Problem(where=COMMAND_LINE, value=text, expected=expected, nearest=hint)
