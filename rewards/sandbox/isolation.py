"""Which isolation level a sandbox may use, and starting slots that hold it: nothing is served that failed a test."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from funicular.rewards.sandbox.config import SandboxConfig
from funicular.rewards.sandbox.self_test import check_slot
from funicular.rewards.sandbox.slot_process import SlotProcess, SlotRole
from funicular.rewards.sandbox.types import Level

ORDER = (Level.L3, Level.L1)
"""Best first."""


class IsolationUnavailable(ValueError):
    """This node does not isolate untrusted code as well as the recipe requires; nothing was run."""


class SlotStarter:
    """Starts the slots of one sandbox at one level. The first of each role must pass the self-test.

    Args:
        python: the interpreter of judged Python.
    """

    def __init__(self, level: Level, python: str) -> None:
        self.level = level
        self._python = python
        self._checked: set[SlotRole] = set()
        self._lock = threading.Lock()

    def __call__(self, role: SlotRole, lane: int) -> SlotProcess:
        """A slot that is ready, for a lane.

        Raises:
            SlotFailed: it could not be started or confined, or a canary of the self-test got through.
        """
        name = f"{lane}-{role.value}"
        slot = SlotProcess(role=role, level=self.level, name=name, python=self._python, slot_number=lane)
        try:
            with self._lock:
                checked = role in self._checked
            if not checked:
                check_slot(slot)
                with self._lock:
                    self._checked.add(role)
        except BaseException:
            slot.kill()
            raise
        return slot


def levels_to_try(config: SandboxConfig) -> tuple[Level, ...]:
    """Best first.

    Raises:
        IsolationUnavailable: the recipe asks for a level below the one that it requires.
    """
    if config.isolation == "auto":
        return ORDER
    asked = Level(config.isolation)
    if below(asked, Level(config.min_level)):
        raise IsolationUnavailable(
            f"sandbox.isolation={asked} is below sandbox.min_level={config.min_level}: expected isolation=auto or "
            f"{config.min_level}, or min_level={asked}"
        )
    return (asked,)


def below(level: Level, required: Level) -> bool:
    """Whether a level isolates less than another."""
    return ORDER.index(level) > ORDER.index(required)


def refusal(config: SandboxConfig, reached: Level | None, failures: Mapping[Level, Exception]) -> IsolationUnavailable:
    """Says which level was reached, which is required, why no higher one was, and what to change.

    Args:
        failures: level to what happened when its first slot was started.
    """
    if config.isolation == "auto":
        key, required = "sandbox.min_level", config.min_level
    else:
        key, required = "sandbox.isolation", config.isolation
    lines = [f"{key}={required}: this node reaches {reached or 'no isolation level'}. Untrusted code is not run."]
    lines += [f"  {level}: {why(failure)}" for level, failure in failures.items()]
    if reached is not None:
        lines.append(f"  Or accept less with {key}={reached}; `funicular sandbox probe` says what that gives up.")
    elif config.isolation == Level.L3:
        lines.append("  Or accept less with sandbox.isolation=auto; `funicular sandbox probe` says what there is.")
    return IsolationUnavailable("\n".join(lines))


def why(failure: Exception) -> str:
    """The reason, and the switch to change where it is known."""
    reason = getattr(failure, "reason", None) or f"{type(failure).__name__}: {failure}"
    switch = getattr(failure, "switch", "")
    return f"{reason}. Change: {switch}" if switch else str(reason)
