"""What a part of a run does now, and since when: told at Ray's Prometheus endpoint, from the part's own process.

The moment is told, not a duration: whoever looks subtracts it from now, and a part that hangs is seen to.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from funicular.actors.kept_gauges import KeptGauges

DOING = "funicular_part_doing_since_seconds"
"""With the labels `run`, `part` and `doing`."""
IDLE = "idle"
_TEXT = "Since when the part does it, seconds since 1970; 0: it does something else"

Method = TypeVar("Method", bound=Callable[..., Any])


class Doing:
    """What one part does, one thing at a time.

    Args:
        gauges: of the part, with the labels `run` and `part`; None: nobody is told.
    """

    def __init__(self, gauges: KeptGauges | None) -> None:
        self._gauges = gauges
        self._now = IDLE
        self._begin(IDLE)

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Within it the part does `what`; afterwards what it did before."""
        before = self._now
        self._begin(what)
        try:
            yield
        finally:
            self._begin(before)

    def _begin(self, what: str) -> None:
        if self._gauges is not None:
            self._gauges.end(DOING, _TEXT, doing=self._now)
            self._gauges.set(DOING, _TEXT, time.time(), doing=what)
        self._now = what


def told(method: Method) -> Method:
    """A method that its object, which has a `doing`, tells of under the method's name; generators too."""
    name = method.__name__
    if inspect.isgeneratorfunction(method):

        @functools.wraps(method)
        def stream(self: Any, *arguments: Any, **keywords: Any) -> Iterator[Any]:
            with self.doing(name):
                yield from method(self, *arguments, **keywords)

        return stream  # type: ignore[return-value]

    @functools.wraps(method)
    def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
        with self.doing(name):
            return method(self, *arguments, **keywords)

    return call  # type: ignore[return-value]
