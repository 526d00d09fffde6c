"""What can go wrong with a group or a part, as the loop distinguishes it."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """What it says, on one line; its type's name if it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0]


class GroupFailed(RuntimeError):
    """One group could not be generated or scored; its slot is refilled.

    `reason` is a short word for the ledger (`generator_died`, `prompt_too_long`, …); `retry_task` says whether the
    same task may be tried again.
    """

    def __init__(self, reason: str, detail: str = "", *, retry_task: bool = True) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.retry_task = retry_task

    def __reduce__(self) -> tuple[object, tuple[str, str, bool]]:
        return (_group_failed, (self.reason, self.detail, self.retry_task))


def _group_failed(reason: str, detail: str, retry_task: bool) -> GroupFailed:
    return GroupFailed(reason, detail, retry_task=retry_task)


class PayloadsLost(RuntimeError):
    """Learner ranks could not fetch these groups; nothing was computed yet, and their slots are refilled."""

    def __init__(self, group_ids: tuple[str, ...]) -> None:
        super().__init__(f"payloads lost: {', '.join(group_ids)}")
        self.group_ids = group_ids

    def __reduce__(self) -> tuple[type[PayloadsLost], tuple[tuple[str, ...]]]:
        return (PayloadsLost, (self.group_ids,))


class LearnerLost(RuntimeError):
    """A learner rank died or missed a deadline: the group restarts from its last snapshot."""


class RunStopped(RuntimeError):
    """The run cannot go on, for a reason that a person must act on."""


class BroadcastBroken(RuntimeError):
    """A broadcast of weights did not bring what was asked for; the object store has it still."""
