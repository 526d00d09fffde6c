"""Reads a run's recipe: files, then `key=value` overrides, typed by the schema and checked.

All problems come at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from funicular.launch.checks import check, warn
from funicular.launch.config import Config
from funicular.launch.config_values import get
from funicular.launch.native_types import with_native_types
from funicular.launch.problems import Problem, RecipeError
from funicular.launch.recipe_files import PACKAGED, Composition, compose, display, packaged_recipes
from funicular.launch.schema_docs import keys
from funicular.launch.typed_config import COMMAND_LINE, TypedConfig
from funicular.launch.yaml_nodes import one_line


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRecipe:
    """A recipe that has passed every check."""

    config: Config
    as_written: Config
    """The same with `auto` types as they stand in the recipe: what another machine is to resolve for itself."""
    folder: Path
    """Reward files are relative to it: the folder of the last recipe that is the user's own, else the working
    directory."""
    text: str
    """The whole resolved recipe as YAML that can be read again; a comment says where a value comes from."""
    files: tuple[Path, ...]
    """Absolute paths of the files in the order in which they took effect, packaged ones among them."""
    sources: tuple[str, ...]
    """Files in the order in which they took effect, then the overrides."""
    origins: Mapping[str, str]
    """Key to `file:line` or `command line`, for keys that are not left at their defaults."""
    warnings: tuple[Problem, ...]


PATHS = ("model.path", "model.chat_template", "data.path", "data.held_out_path", "distillation.teacher")
"""Keys that may name something on disk."""


def load_recipe(paths: Sequence[str], overrides: Sequence[str], *, elsewhere: str | None = None) -> LoadedRecipe:
    """Read, compose, type and check a recipe.

    Args:
        paths: recipe files or names of packaged recipes; later ones win, key by key.
        overrides: `key=value` with YAML values; they win over files.
        elsewhere: a folder of the machines that the recipe is for; what lies below it is not looked for on this one.

    Raises:
        RecipeError: everything that is wrong, each with its place, key, value, expectation and nearest fix.
    """
    found = Composition()
    if not paths:
        expected = f"no recipe given; packaged ones are {', '.join(packaged_recipes())}"
        found.problems.append(Problem(where=COMMAND_LINE, expected=expected, nearest="Write -c NAME"))
    folder = Path.cwd()
    for path in paths:
        compose(path, Path(), found, where=COMMAND_LINE)
        if found.files and found.files[-1].parent != PACKAGED:
            folder = found.files[-1].parent
    typed = TypedConfig()
    for entry in found.entries:
        typed.apply(entry)
    for override in overrides:
        typed.apply_override(override)
    problems = found.problems + typed.problems + typed.missing()
    as_written = typed.config()
    config = with_native_types(as_written)
    # A rule that reads a key which is wrong already would only report the same mistake again.
    wrong = {_owner(key) for problem in problems for key in (problem.key, *problem.related)}
    problems += [
        problem
        for problem in _placed(check(config, folder), typed.origins)
        if wrong.isdisjoint(_owner(key) for key in (problem.key, *problem.related))
        and not (elsewhere and problem.key in PATHS and Path(str(get(config, problem.key))).is_relative_to(elsewhere))
    ]
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))
    return LoadedRecipe(
        config=config,
        as_written=as_written,
        folder=folder,
        text=render(config, typed.origins),
        files=tuple(found.files),
        sources=(*(display(path) for path in found.files), *overrides),
        origins=typed.origins,
        warnings=tuple(_placed(warn(config), typed.origins)),
    )


def resolved_config(file: Path) -> Config:
    """What a run folder's `config.yaml` says, not checked again: data and reward files need not be there any more.

    Raises:
        RecipeError: it cannot be read, or this version does not know a key of it.
    """
    found = Composition()
    compose(str(file), Path(), found, where=COMMAND_LINE)
    typed = TypedConfig()
    for entry in found.entries:
        typed.apply(entry)
    if problems := found.problems + typed.problems:
        raise RecipeError(problems)
    return typed.config()


def render(config: Config, origins: Mapping[str, str]) -> str:
    """A config as YAML, one key a line; values that are not defaults say where they come from."""
    lines = []
    values = asdict(config)
    for name in keys():
        section, dot, last = name.rpartition(".")
        value = values[section][last] if dot else values[last]
        if dot and f"{section}:" not in lines:
            lines.append(f"{section}:")
        comment = f"  # {origins[name]}" if name in origins else ""
        lines.append(f"{'  ' if dot else ''}{last}: {one_line(value)}{comment}")
    return "\n".join(lines) + "\n"


def _placed(problems: Sequence[Problem], origins: Mapping[str, str]) -> Iterator[Problem]:
    """The problems with the place where their key, or else a key of their rule, was set."""
    for problem in problems:
        places = (origins.get(_owner(key)) for key in (problem.key, *problem.related))
        yield replace(problem, where=next((place for place in places if place), "default"))


def _owner(key: str) -> str:
    """The schema's key: `reward.functions` for `reward.functions.length`."""
    return next((known for known in keys() if key.startswith(f"{known}.")), key)
