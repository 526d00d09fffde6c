"""What of the interpreter's surroundings a job may see.

Third-party packages are hidden but for those named here and those that are preloaded: an environment may hold
benchmarks with their solutions. Where it cannot be hidden is said in `docs/sandbox.md`.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable

SHOWN_PACKAGES = (
    *("numpy", "scipy", "sympy", "mpmath", "sortedcontainers"),
    *("pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments", "hypothesis", "_hypothesis_globals"),
    *("attr", "attrs"),
)
"""Where they are installed: what honest programs import, and what tests need."""

_THIRD_PARTY = ("python3*/site-packages", "python3*/dist-packages")
_OF_PREFIX = ("bin", "lib", "lib32", "lib64", "libexec", "include", "share/nodejs", "share/zoneinfo")
"""What is shown of a prefix: images keep projects and data below /usr too (WORKDIR /usr/src/app). Debian's node does
not start without its `share/nodejs`."""


def packages(site: str | None, preload: Iterable[str]) -> dict[str, str]:
    """Real paths of the packages that are shown, by their names in the folder `site`."""
    if site is None:
        return {}
    names = {*SHOWN_PACKAGES, *(module.partition(".")[0] for module in preload)}
    found = {}
    for name in sorted(names):
        for entry in (name, f"{name}.libs", f"{name}.py"):
            path = f"{site}/{entry}"
            if os.path.exists(path):
                found[entry] = os.path.realpath(path)
    return found


def interpreter_folders() -> list[str]:
    """Programs and libraries of the system, and where this interpreter and its standard library are."""
    prefixes = ("/usr", "/usr/local", sys.base_prefix, sys.base_exec_prefix)
    shown: list[str] = []
    for folder in (*(f"{prefix}/{name}" for prefix in prefixes for name in _OF_PREFIX), *sys.path):
        for path in (os.path.realpath(folder), folder):
            if os.path.isdir(path) and path not in ("", "/") and not _below(path, shown):
                shown.append(path)
    return shown


def real_folders(folders: Iterable[str]) -> list[str]:
    """Where they really are, each once."""
    found: list[str] = []
    for folder in sorted({os.path.realpath(folder) for folder in folders}):
        if os.path.isdir(folder) and not _below(folder, found):
            found.append(folder)
    return found


def third_party_folders(shown: Iterable[str]) -> list[str]:
    """Folders of third-party packages inside folders that are shown."""
    found = {path for root in shown for pattern in _THIRD_PARTY for path in glob.glob(f"{root}/{pattern}")}
    return sorted(path for path in found if os.path.isdir(path) and not os.path.islink(path))


def around(folder: str, hidden: list[str]) -> tuple[list[str], list[str]]:
    """How to grant all of `folder` but what is hidden in it, to something that can only add up.

    Returns:
        Paths that may be read with all below them; folders of which only the names may be read.
    """
    if not any(_below(path, [folder]) for path in hidden):
        return [folder], []
    readable, listable = [], [folder]
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.path in hidden or entry.is_symlink():
                continue  # a link leads to a path with rules of its own
            below = around(entry.path, hidden) if entry.is_dir() else ([entry.path], [])
            readable += below[0]
            listable += below[1]
    return readable, listable


def _below(path: str, folders: Iterable[str]) -> bool:
    return any(f"{path}/".startswith(f"{folder}/") for folder in folders)
