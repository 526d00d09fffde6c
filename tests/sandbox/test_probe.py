"""What the probe and the switches say, here and on machines that allow less."""

import ast
import errno
import subprocess
import sys

import pytest

from funicular.rewards.sandbox import switches
from funicular.rewards.sandbox.probe import reach
from funicular.rewards.sandbox.slot import landlock
from funicular.rewards.sandbox.types import Level
from tests.slots import LEVELS, skip_unless_possible

_LESS = """
import errno, sys
from funicular.rewards.sandbox.slot import kernel
from funicular.rewards.sandbox.slot.seccomp import ALLOW, Filter, assemble, deny
from funicular.rewards.sandbox.slot.syscalls import this_machine
kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
rules = {name: deny(getattr(errno, sys.argv[1])) for name in sys.argv[2].split()}
Filter(assemble(rules, this_machine(), ALLOW)).install(listener=sys.argv[3] == "listen")
"""
_PROBE = """
from funicular.rewards.sandbox.probe import reach
found = reach()
print(repr((found.level and found.level.value, dict(found.reasons), dict(found.details))))
"""


def _probe_with_less(error: str, calls: str, listen: str = "") -> tuple[str | None, dict[str, str], dict[str, str]]:
    """What the probe finds below a seccomp filter like those of containers."""
    done = subprocess.run(
        [sys.executable, "-c", _LESS + _PROBE, error, calls, listen], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout)


def test_the_probe_reaches_a_level_or_says_why_not() -> None:
    found = reach()

    assert set(found.reasons) == {level.value for level in LEVELS[: LEVELS.index(found.level) if found.level else 2]}
    assert all(found.reasons.values())
    assert found.details["kernel"]
    if landlock.abi():
        assert found.level is not None


def test_without_an_interpreter_nothing_is_reached() -> None:
    found = reach(python="/nowhere/python")

    assert found.level is None
    assert all("/nowhere/python" in reason for reason in found.reasons.values())


@pytest.mark.parametrize("denied", ["unshare", "mount_setattr"])
def test_a_container_that_denies_namespaces_or_mounts_reaches_l1_and_names_the_switch(denied: str) -> None:
    skip_unless_possible(Level.L1)

    level, reasons, _ = _probe_with_less("EPERM", denied)

    assert level == "L1"
    assert denied.replace("_setattr", "") in reasons["L3"]
    assert "seccompProfile" in reasons["L3"] or "sysctl" in reasons["L3"]


def test_a_kernel_without_landlock_reaches_l3_only() -> None:
    skip_unless_possible(Level.L3)

    level, reasons, details = _probe_with_less("ENOSYS", "landlock_create_ruleset")

    assert (level, reasons) == ("L3", {})
    assert details["slot: landlock"] == "version 0"


def test_a_kernel_with_neither_reaches_nothing() -> None:
    level, reasons, _ = _probe_with_less("ENOSYS", "landlock_create_ruleset unshare")

    assert level is None
    assert "lsm=" in reasons["L1"]


def test_below_a_filter_that_listens_denied_calls_are_denied_without_being_counted() -> None:
    skip_unless_possible(Level.L1)

    level, _, details = _probe_with_less("EPERM", "unshare", "listen")

    assert level == "L1"
    assert details["slot: denied calls"] == "not counted"


def test_switches_say_what_would_help() -> None:
    for error in (errno.EPERM, errno.EACCES):
        assert "seccompProfile" in switches.to_reach(Level.L3, error) or "sysctl" in switches.to_reach(Level.L3, error)
    assert "landlock" in switches.to_reach(Level.L1, None)
