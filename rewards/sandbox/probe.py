"""Which isolation level this machine reaches: found out by starting and attacking a slot at each, not by reading
what the system says of itself."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from funicular.rewards.sandbox.isolation import ORDER
from funicular.rewards.sandbox.self_test import check_slot
from funicular.rewards.sandbox.slot import landlock, native
from funicular.rewards.sandbox.slot_process import SlotFailed, SlotProcess, SlotRole, missing_tool
from funicular.rewards.sandbox.types import Level


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What was found."""

    level: Level | None
    """The best that holds; None: code that a policy wrote cannot run here."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """By level that was not reached: why not, and which switch to change."""
    details: Mapping[str, str] = field(default_factory=dict)
    """What the machine has, for people."""


def reach(python: str = sys.executable) -> Reach:
    """Start and attack a slot at the best level, then at the next. Takes a second or two.

    Args:
        python: interpreter of the jobs.
    """
    details = {
        "kernel": f"{platform.release()} {platform.machine()}",
        "user": "root" if os.getuid() == 0 else f"uid {os.getuid()}",
        "landlock": f"version {version}" if (version := landlock.abi()) else "none",
    }
    details |= {f"language {name}": missing_tool(name) or "its tools are here" for name in native.TOOLS}
    reasons: dict[str, str] = {}
    for level in ORDER:
        try:
            found = _try(level, python)
        except SlotFailed as failure:
            reasons[level.value] = str(failure)
            continue
        details |= {f"slot: {name}": value for name, value in found.items()}
        return Reach(level=level, reasons=reasons, details=details)
    return Reach(level=None, reasons=reasons, details=details)


def _try(level: Level, python: str) -> dict[str, str]:
    slot = SlotProcess(role=SlotRole.CANDIDATE, level=level, name="probe", python=python, preload=())
    try:
        check_slot(slot)
        return slot.details
    finally:
        slot.kill()
