"""Every path through a program that asks what goes wrong next, in virtual time: a small model checker for real code."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class Choices:
    """One path: what was chosen at each question. Questions after the given ones are answered with the first option."""

    def __init__(self, given: Sequence[int] = ()) -> None:
        self._given = given
        self.taken: list[tuple[int, int]] = []
        """(option chosen, number of options) of each question so far."""
        self.words: list[str] = []
        """Of the options that were not the first."""

    def choose(self, what: str, options: Sequence[T]) -> T:
        """The option of this path; the first one is the ordinary course of things."""
        number = len(self.taken)
        option = self._given[number] if number < len(self._given) else 0
        self.taken.append((option, len(options)))
        if option:
            self.words.append(f"{what}: {options[option]}")
        return options[option]


def every_path(walk: Callable[[Choices], None]) -> Iterator[Choices]:
    """Walk every path, depth first; `walk` asks the same questions whenever it is given the same answers."""
    given: list[int] = []
    while True:
        choices = Choices(given)
        try:
            walk(choices)
        except BaseException as error:
            error.add_note(f"on the path: {'; '.join(choices.words) or 'without faults'}")
            raise
        yield choices
        taken = choices.taken
        while taken and taken[-1][0] == taken[-1][1] - 1:
            taken.pop()
        if not taken:
            return
        given = [option for option, _ in taken[:-1]] + [taken[-1][0] + 1]


class NothingWillHappen(AssertionError):
    """The program waits, and there is no timer: it would wait for ever."""


class _VirtualSelector(selectors.SelectSelector):
    """Instead of waiting, moves the clock to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise NothingWillHappen
        self.now += max(0.0, timeout)
        return []


def run_in_virtual_time(program: Callable[[], Awaitable[T]]) -> T:
    """Run a coroutine on a loop whose clock jumps; no second passes outside."""
    selector = _VirtualSelector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(program())  # type: ignore[arg-type]
