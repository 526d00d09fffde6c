"""What one fork said of a rollout group: the verifier of its texts, then the built-in reward functions of all of them.

Built-in functions keep nothing from one call to the next, so they share a fork with each other and with the verifier:
a group costs one fork of the warm process, not one for each. A user's function has a fork of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from funicular.rewards.attribution import FailedError, TimedOutError
from funicular.rewards.forks import Ending
from funicular.rewards.reward_process import Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupReply:
    """The parts of a fork's reply."""

    verifier: Reply
    """Up to the first text without an answer."""
    functions: dict[str, Reply | None]
    """By name, of those that the fork came to. It stands for the function's first call on the group. None: the fork's
    memory was used up, by this function or by what ran before it, so it is asked again alone."""


def parted(reply: Reply, texts: int, functions: Sequence[str]) -> GroupReply:
    """Part a reply.

    Args:
        texts: how many the verifier was asked for.
        functions: asked after the verifier, in this order.
    """
    verified = reply.answers[:texts]
    verifier = Reply(
        answers=verified, ending=Ending.DONE if len(verified) == texts else reply.ending, message=reply.message
    )
    found: dict[str, Reply | None] = {
        name: Reply(answers=(answer,), ending=Ending.DONE, message="")
        for name, answer in zip(functions, reply.answers[texts:], strict=False)
        if answer
    }
    under_way = len(reply.answers) - texts
    if reply.ending is not Ending.DONE and 0 <= under_way < len(functions):
        is_its_own = reply.ending is not Ending.MEMORY
        found[functions[under_way]] = (
            Reply(answers=(), ending=reply.ending, message=reply.message) if is_its_own else None
        )
    return GroupReply(verifier=verifier, functions=found)


def values(reply: Reply) -> list[Any]:
    """What a reward function returned.

    Raises:
        FailedError: it raised, or its fork died.
        TimedOutError: it ran into a limit.
    """
    if reply.ending is Ending.DIED:
        raise FailedError(reply.message)
    if reply.ending is not Ending.DONE:
        raise TimedOutError(reply.message)
    (answer,) = reply.answers
    if "raised" in answer:
        raise FailedError(answer["raised"])
    listed: list[Any] = answer["value"]
    return listed
