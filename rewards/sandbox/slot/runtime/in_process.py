"""A candidate in the tests' own process, for tests that cannot be split from it.

Such code can change the tests and write its own verdict: `Integrity.WEAK`, refused unless a recipe allows it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

NAME = "solution"


class InProcessCandidate:
    """What `proxies.Candidate` is to the tests, without a channel."""

    failure = ""
    violations = 0

    def __init__(self, source: str) -> None:
        self._source = source
        self._module = ModuleType(NAME)

    def wait_until_ready(self) -> None:
        """Run its source; what that raises passes through."""
        sys.modules[NAME] = self._module
        exec(compile(self._source, f"{NAME}.py", "exec", dont_inherit=True), self._module.__dict__)

    @property
    def names(self) -> dict[str, Any]:
        """What it defines."""
        return {name: value for name, value in vars(self._module).items() if not name.startswith("__")}

    def function(self, name: str) -> Callable[..., Any]:
        """Its function of that name, else that method of a new `Solution`.

        Raises:
            NameError: it has neither.
        """
        found = self.names.get(name)
        if found is None and hasattr(self.names.get("Solution"), name):
            found = getattr(self.names["Solution"](), name)
        if found is None:
            raise NameError(f"name {name!r} is not defined")
        return found

    def module(self, name: str, exported: Iterable[str]) -> ModuleType:
        """The module itself, under any name."""
        return self._module
