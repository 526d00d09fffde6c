"""What to do when a call on a rollout group fails: find out which completions are to blame.

Values of a reward function are only ever taken from calls on whole groups, since a function may compare the
completions of a group. Calls on single completions find out which of them is to blame; the rest of the group is
then evaluated together again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Call = Callable[[list[int]], list[Any]]
"""Evaluates the completions with these indexes: a value for each, or one of the two errors below."""


class FailedError(RuntimeError):
    """The function raised, or its process died: our fault."""


class TimedOutError(RuntimeError):
    """The function ran into a limit of time or memory."""


@dataclass(slots=True)
class Outcome:
    """What one callable gave for a group, by index; an index stands in exactly one of the three."""

    values: dict[int, float | None] = field(default_factory=dict)
    timeouts: dict[int, str] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)

    def take(self, indexes: list[int], values: list[Any]) -> None:
        """Note the values of a call. {"unscored": why} is the error of one completion."""
        for index, value in zip(indexes, values, strict=True):
            if isinstance(value, dict):
                self.errors[index] = value["unscored"]
            else:
                self.values[index] = value


def attribute(call: Call, indexes: list[int]) -> Outcome:
    """Evaluate a group; where that fails, find out for which completions, and evaluate the others again.

    What raises or crashes is tried once more. What runs into a limit alone is the completion's own doing; what
    raises alone is the function's error. A group that fails only when it is together is the function's error for
    all of it. At most 3 calls on the group and 2 on each completion.
    """
    outcome = Outcome()
    if not indexes:
        return outcome
    tries_alone = 2
    try:
        outcome.take(indexes, call(indexes))
        return outcome
    except TimedOutError:
        pass
    except FailedError:
        tries_alone = 1  # the call below is the retry
        try:
            outcome.take(indexes, call(indexes))
            return outcome
        except (TimedOutError, FailedError):
            pass
    for index in indexes:
        try:
            _alone(call, index, tries_alone)
        except TimedOutError as error:
            outcome.timeouts[index] = str(error)
        except FailedError as error:
            outcome.errors[index] = str(error)
    rest = [i for i in indexes if i not in outcome.timeouts and i not in outcome.errors]
    try:
        outcome.take(rest, call(rest) if rest else [])
    except (TimedOutError, FailedError) as error:
        outcome.errors |= dict.fromkeys(rest, f"{error} (on these completions together, on none of them alone)")
    return outcome


def attribute_to_all(call: Call, indexes: list[int]) -> Outcome:
    """Evaluate a group; what fails twice is an error for all of it, limits of time included.

    For functions that use the network: a slow or broken endpoint is no completion's doing, and asking it again
    for each of them would take long and cost money.
    """
    outcome = Outcome()
    for _ in range(2 if indexes else 0):
        try:
            outcome.take(indexes, call(indexes))
            return outcome
        except (TimedOutError, FailedError) as error:
            outcome.errors = dict.fromkeys(indexes, str(error))
    return outcome


def _alone(call: Call, index: int, tries: int) -> None:
    for remaining in reversed(range(tries)):
        try:
            call([index])
            return
        except FailedError:
            if not remaining:
                raise
