"""Copies of `funicular.actors` and of tests about it, under other names and with changed source text.

A copy is a package of its own: nothing of it is patched into the live one. Its test modules are copies too, with their
imports renamed, so that the tests check the changed code and no other.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType, TracebackType

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "changed_copy"
"""`funicular.actors` is copied as changed_copy.actors, `tests` as changed_copy.tests."""
_IMPORTS = (
    (re.compile(r"\bfunicular\.actors\b"), f"{PACKAGE}.actors"),
    (re.compile(r"^( *from funicular) import actors\b", re.MULTILINE), f"from {PACKAGE} import actors"),
    (re.compile(r"^( *)(from|import) tests\b", re.MULTILINE), rf"\1\2 {PACKAGE}.tests"),
)
_unchanged: dict[Path, CodeType] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """One replacement in one file."""

    file: str
    """Relative to actors/."""
    old: str
    """Must stand there exactly once."""
    new: str

    def applied_to(self, source: str) -> str:
        """The source with the replacement.

        Raises:
            LookupError: the old text is not there, or more than once: the list of mutations is out of date.
        """
        count = source.count(self.old)
        if count != 1:
            raise LookupError(f"actors/{self.file}: found {count} times, expected once: {self.old!r}")
        return source.replace(self.old, self.new)


class ChangedCopy:
    """A context in which `module` imports from the changed copy; afterwards nothing of it is left."""

    def __init__(self, patches: Sequence[Patch]) -> None:
        by_file: dict[Path, list[Patch]] = {}
        for patch in patches:
            by_file.setdefault(ROOT / "actors" / patch.file, []).append(patch)
        self._finder = _Finder(by_file)

    def __enter__(self) -> ChangedCopy:
        sys.meta_path.insert(0, self._finder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.meta_path.remove(self._finder)
        for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
            del sys.modules[name]

    def module(self, name: str) -> ModuleType:
        """A copied module, by its name without the package: tests.unit.actors.test_loss.

        Raises:
            LookupError: a patched file was not imported by it, so that the copy is not changed at all.
        """
        module = importlib.import_module(f"{PACKAGE}.{name}")
        if missed := self._finder.not_loaded():
            raise LookupError(f"{name} does not import {', '.join(map(str, missed))}")
        return module


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, patches: Mapping[Path, Sequence[Patch]]) -> None:
        self._patches = patches
        self._loaded: set[Path] = set()

    def not_loaded(self) -> list[Path]:
        return sorted(set(self._patches) - self._loaded)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, *parts = fullname.split(".")
        if package != PACKAGE:
            return None
        place = ROOT.joinpath(*parts)
        if place.is_dir():
            return importlib.machinery.ModuleSpec(fullname, None, is_package=True)
        if place.with_suffix(".py").is_file():
            return importlib.machinery.ModuleSpec(fullname, self, origin=str(place.with_suffix(".py")))
        return None

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        assert spec.origin is not None
        exec(self._code(Path(spec.origin)), module.__dict__)

    def _code(self, file: Path) -> CodeType:
        patches = self._patches.get(file, ())
        if not patches and file in _unchanged:
            return _unchanged[file]
        source = file.read_text()
        for patch in patches:
            source = patch.applied_to(source)
        self._loaded.add(file)
        for pattern, renamed in _IMPORTS:
            source = pattern.sub(renamed, source)
        code = compile(source, str(file), "exec")
        if not patches:
            _unchanged[file] = code
        return code
