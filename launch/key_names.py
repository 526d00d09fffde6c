"""The nearest valid key for one that does not exist: by edit distance, and by what peers call the thing."""

from __future__ import annotations

from difflib import SequenceMatcher

from funicular.launch.engine_options import NO_SUCH_SAMPLING, SAMPLING_PARAMETERS
from funicular.launch.peer_names import PEER_NAMES
from funicular.launch.problems import Problem
from funicular.launch.schema_docs import keys, sections

_CLOSE = 0.72
"""Similarity (difflib) from which a key counts as a possible slip of the pen."""


def nearest_key(name: str) -> str | None:
    """The valid key that `name` probably means; None when nothing is close.

    Peers' names come first, the longest suffix before shorter ones (`rollout.n` before `n`); then the same
    last part in another section; then edit distance over full keys and over last parts.
    """
    wanted = name.strip().lstrip("-+").replace("-", "_").replace("/", ".").lower()
    if wanted in keys():
        return wanted
    parts = wanted.split(".")
    for start in range(len(parts)):
        if known := PEER_NAMES.get(".".join(parts[start:])):
            return known
    same_last = [key for key in keys() if key.rpartition(".")[2] == parts[-1]]
    if same_last:
        return max(same_last, key=lambda key: _similarity(key, wanted))
    scored = [
        (
            max(_similarity(key, wanted), _similarity(key.rpartition(".")[2], parts[-1])),
            _similarity(key, wanted),
            key,
        )
        for key in keys()
    ]
    best, _, key = max(scored)
    return key if best >= _CLOSE else None


def nearest_section(name: str) -> str | None:
    """The section that a misspelt one probably means; None for a name below the top level."""
    best = max(sections(), key=lambda section: _similarity(section, name))
    return best if "." not in name and _similarity(best, name) >= _CLOSE else None


def unknown_key(name: str, where: str, value: str) -> Problem:
    """No such key: names the nearest one, its type and what it does. An empty value is a mapping."""
    related: tuple[str, ...] = ()
    if name.rpartition(".")[2].lower() in SAMPLING_PARAMETERS:
        return Problem(where=where, key=name, value=value, expected=NO_SUCH_SAMPLING, nearest="Leave it out")
    if name in keys():
        section, _, last = name.partition(".")
        hint = f"A dot is no level in a file: write {section}: {{{last}: {value}}}"
    elif value in ("", "null") and nearest_section(name):
        hint = f"Did you mean the section {nearest_section(name)}?"
    elif nearest := nearest_key(name):
        key = keys()[nearest]
        hint = f"Did you mean {nearest} ({key.type_text})? {key.doc}"
        related = (nearest,)
    else:
        hint = "`funicular config keys` lists all keys"
    return Problem(where=where, key=name, value=value, expected="there is no such key", nearest=hint, related=related)


def not_a_section(name: str, value: str, where: str) -> Problem:
    """A section was given a value of its own."""
    members = ", ".join(key.partition(".")[2] for key in keys() if key.startswith(f"{name}."))
    nearest = PEER_NAMES.get(name)
    hint = f"Did you mean {nearest}={value}?" if nearest else ""
    return Problem(where=where, key=name, value=value, expected=f"a section with the keys {members}", nearest=hint)


def _similarity(left: str, right: str) -> float:
    return SequenceMatcher(None, left.replace(".", "_"), right.replace(".", "_")).ratio()
