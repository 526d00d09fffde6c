"""What is wrong with a recipe, said so that a newcomer can act on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong, or a warning."""

    where: str = ""
    """`file:line`, `command line`, or empty where a default is involved."""
    key: str = ""
    """Dotted key; empty when a whole file is meant."""
    value: str = ""
    """What was given, as YAML writes it."""
    expected: str
    """What was expected, and why the value is not that."""
    nearest: str = ""
    """What to write instead: a question or an instruction."""
    related: tuple[str, ...] = ()
    """Other keys that the rule read."""

    def __str__(self) -> str:
        subject = f"{self.key}={self.value}" if self.key and self.value else self.key or self.value
        text = ": ".join(part for part in (self.where, subject, self.expected) if part)
        return f"{text}. {self.nearest}" if self.nearest else text


class RecipeError(ValueError):
    """Everything that is wrong with a recipe, found before anything expensive starts (law 7)."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = "1 problem" if count == 1 else f"{count} problems"
        super().__init__("\n".join([f"{head} in the recipe:", *(f"  {problem}" for problem in self.problems)]))

    def __reduce__(self) -> tuple[type[RecipeError], tuple[tuple[Problem, ...]]]:
        return (RecipeError, (self.problems,))
