"""Reads a run's recipe: files, then `key=value` overrides, typed by the schema and checked, all problems at once.

OmegaConf does the typing; its DictConfig never leaves this module.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from funicular.launch.checks import check, warn
from funicular.launch.config import Config
from funicular.launch.key_names import nearest_key, not_a_section, unknown_key
from funicular.launch.problems import Problem, RecipeError
from funicular.launch.recipe_files import PACKAGED, Composition, Entry, compose, display, packaged_recipes
from funicular.launch.schema_docs import Key, keys, sections
from funicular.launch.yaml_nodes import error_text, parse_value, show_value
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

COMMAND_LINE = "command line"
_OPTION = re.compile(r"((?:.*\.py:)?[^.]+)(?:\.(.+))?")
"""What follows `reward.options.`: a function's name, whose path may hold dots, and an argument of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRecipe:
    """A recipe that has passed every check."""

    config: Config
    folder: Path
    """Reward files are relative to it: the folder of the last recipe that is the user's own, else the working
    directory."""
    text: str
    """The whole resolved recipe as YAML that can be read again; a comment says where a value comes from."""
    sources: tuple[str, ...]
    """Files in the order in which they took effect, then the overrides."""
    origins: Mapping[str, str]
    """Key to `file:line` or `command line`, for keys that are not left at their defaults."""
    warnings: tuple[Problem, ...]


def load_recipe(paths: Sequence[str], overrides: Sequence[str]) -> LoadedRecipe:
    """Read, compose, type and check a recipe.

    Args:
        paths: recipe files or names of packaged recipes; later ones win, key by key.
        overrides: `key=value` with YAML values; they win over files.

    Raises:
        RecipeError: everything that is wrong, each with its place, key, value, expectation and nearest fix.
    """
    found = Composition()
    if not paths:
        expected = f"no recipe given; packaged ones are {', '.join(packaged_recipes())}"
        found.problems.append(Problem(where=COMMAND_LINE, expected=expected, nearest="Write -c NAME"))
    own_folders = []
    for path in paths:
        compose(path, Path(), found, where=COMMAND_LINE)
        if found.files and found.files[-1].parent != PACKAGED:
            own_folders.append(found.files[-1].parent)
    typed = _TypedConfig()
    for entry in found.entries:
        typed.apply(entry)
    for override in overrides:
        typed.apply_override(override)
    problems = found.problems + typed.problems + typed.missing()
    config = typed.config()
    folder = own_folders[-1] if own_folders else Path.cwd()

    # A rule that reads a key which is wrong already would only report the same mistake again.
    broken = {key for problem in problems for key in (problem.key, *problem.related)}
    problems += [
        replace(problem, where=typed.origins.get(problem.key, ""))
        for problem in check(config, folder)
        if broken.isdisjoint((problem.key, *problem.related))
    ]
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))
    return LoadedRecipe(
        config=config,
        folder=folder,
        text=render(config, typed.origins),
        sources=(*(display(path) for path in found.files), *overrides),
        origins=typed.origins,
        warnings=tuple(
            replace(warning, where=typed.origins.get(warning.key, "")) for warning in warn(config)
        ),
    )


def render(config: Config, origins: Mapping[str, str]) -> str:
    """A config as YAML, one key a line; values that are not defaults say where they come from."""
    lines = []
    values = asdict(config)
    for name in keys():
        section, dot, last = name.rpartition(".")
        value = values[section][last] if dot else values[last]
        if dot and f"{section}:" not in lines:
            lines.append(f"{section}:")
        written: str = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
        written = written.removesuffix("\n").removesuffix("\n...")
        comment = f"  # {origins[name]}" if name in origins else ""
        lines.append(f"{'  ' if dot else ''}{last}: {written}{comment}")
    return "\n".join(lines) + "\n"


class _TypedConfig:
    """OmegaConf's structured config, filled entry by entry so that one wrong value does not hide the next."""

    def __init__(self) -> None:
        self._tree: DictConfig = OmegaConf.structured(Config)
        for node in (self._tree, *(self._tree[section] for section in sections())):
            OmegaConf.set_readonly(node, False)  # frozen dataclasses make read-only nodes
        self.origins: dict[str, str] = {}
        self.problems: list[Problem] = []

    def apply(self, entry: Entry) -> None:
        """Set one key, or collect why not."""
        key = keys()[entry.key]
        value = _integral(entry.value, key)
        try:
            if isinstance(value, bool) and key.base is not bool and not key.is_map:
                raise OmegaConfBaseException("OmegaConf takes true for 1 and for a text")
            OmegaConf.update(self._tree, entry.key, _without_interpolation(value), merge=False)
        except OmegaConfBaseException:
            shown = show_value(entry.value)
            expected = f"expected {key.type_text}, got {_type_name(entry.value)}"
            self.problems.append(
                Problem(
                    where=entry.where,
                    key=entry.key,
                    value=shown,
                    expected=expected,
                    nearest=_type_hint(key, shown),
                )
            )
            return
        self.origins[entry.key] = entry.where

    def apply_override(self, text: str) -> None:
        """Set what one `key=value` of the command line says, or collect why not."""
        name, equals, written = text.partition("=")
        in_map = next(
            (key for key in keys().values() if key.is_map and name.startswith(f"{key.name}.")), None
        )
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
                nearest = f"A value with : or {{ or [ needs quotes: {name}='\"...\"'"
                self.problems.append(
                    Problem(
                        where=COMMAND_LINE,
                        key=name,
                        value=written,
                        expected=error_text(error),
                        nearest=nearest,
                    )
                )
                return
            if in_map is None:
                self.apply(Entry(key=name, value=value, where=COMMAND_LINE))
            else:
                self._apply_in_map(in_map, name.removeprefix(f"{in_map.name}."), value)

    def _apply_in_map(self, key: Key, rest: str, value: Any) -> None:
        """`reward.functions.NAME=weight` and `reward.options.NAME.argument=value` add to the map."""
        mapping = copy.deepcopy(OmegaConf.to_container(self._tree)[key.name.split(".")[0]])  # type: ignore[index,call-overload]
        mapping = mapping[key.name.split(".")[1]]
        nested = _OPTION.fullmatch(rest) if key.type_text == "map of values" else None
        if nested and nested[2]:
            mapping[nested[1]] = {**(mapping.get(nested[1]) or {}), nested[2]: value}
        else:
            mapping[rest] = value
        before = self.origins.get(key.name)
        where = COMMAND_LINE if before in (None, COMMAND_LINE) else f"{before}, {COMMAND_LINE}"
        self.apply(Entry(key=key.name, value=mapping, where=where))

    def missing(self) -> list[Problem]:
        """Keys that a recipe leaves open with `???`; they are set back to their defaults."""
        problems = []
        for name in sorted(OmegaConf.missing_keys(self._tree)):
            nearest = f"Add {name}=VALUE to the command line, or set it in a recipe of your own"
            key = next((key for key in keys() if name == key or name.startswith(f"{key}.")), name)
            where = self.origins.get(key, "")
            expected = "the recipe leaves this value to you"
            problems.append(Problem(where=where, key=name, value="???", expected=expected, nearest=nearest))
            OmegaConf.update(self._tree, key, keys()[key].default, merge=False)
        return problems

    def config(self) -> Config:
        """The frozen dataclasses."""
        result = OmegaConf.to_object(self._tree)
        if not isinstance(result, Config):
            raise TypeError(f"OmegaConf built {type(result).__name__}, expected Config")
        return result


def _integral(value: Any, key: Key) -> Any:
    """1e3 is an int where an int is wanted."""
    return int(value) if key.base is int and isinstance(value, float) and value.is_integer() else value


def _without_interpolation(value: Any) -> Any:
    """Escapes `${`: to OmegaConf it opens an interpolation, to a recipe it is text of a prompt or a pattern."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)
    if isinstance(value, dict):
        return {name: _without_interpolation(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_interpolation(item) for item in value]
    return value


def _type_name(value: Any) -> str:
    names = {
        bool: "true or false",
        int: "an int",
        float: "a float",
        str: "text",
        dict: "a mapping",
        list: "a list",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _type_hint(key: Key, shown: str) -> str:
    from difflib import get_close_matches

    if key.choices:
        near = get_close_matches(shown.lower(), key.choices, n=1)
        return f"Did you mean {near[0]}?" if near else ""
    return f"Its default is {show_value(key.default)}"


def _not_an_override(text: str, name: str) -> Problem:
    nearest = nearest_key(name)
    if "=" in text:
        expected, hint = (
            "there is no value after =",
            f"Write {name}=null or {name}='\"\"' if nothing is meant",
        )
    elif text.endswith((".yaml", ".yml")) or text in packaged_recipes():
        expected, hint = "expected key=value", f"A recipe is given with -c {text}"
    else:
        expected = "expected key=value"
        hint = f"Did you mean {nearest}=VALUE ({keys()[nearest].type_text})?" if nearest else ""
    return Problem(where=COMMAND_LINE, value=text, expected=expected, nearest=hint)
