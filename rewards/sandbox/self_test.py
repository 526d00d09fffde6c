"""Whether a slot holds: small attacks through the same code that runs judged programs."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from funicular.rewards.sandbox.canaries import THROUGH, TRIED, Canary, bash_canaries, python_canaries
from funicular.rewards.sandbox.slot import native
from funicular.rewards.sandbox.slot.syscalls import this_machine
from funicular.rewards.sandbox.slot.wire import Job, JobKind
from funicular.rewards.sandbox.slot_process import SlotFailed, SlotLost, SlotProcess, SlotRole
from funicular.rewards.sandbox.types import JobReport, Level, Limits, Outcome

_OUTSIDE = "outside of every slot\n"
_OWN_USER = "its own"


def check_slot(slot: SlotProcess) -> None:
    """Attack a fresh slot. Takes well under two seconds on an idle machine.

    Raises:
        SlotFailed: an attack got through; the message names it. Do not use the slot.
    """
    if slot.role is SlotRole.NATIVE and native.tool("bash") is None:
        raise SlotFailed(f"slot {slot.name}: without bash below /usr a native slot cannot be tested")
    with tempfile.TemporaryDirectory(prefix="funicular-outside-") as folder:
        # readable and writable for everybody: what keeps a job away must be the slot
        os.chmod(folder, 0o777)
        outside = Path(folder, "outside.txt")
        outside.write_text(_OUTSIDE)
        outside.chmod(0o666)
        before = outside.stat()
        try:
            _attack(slot, str(outside))
            _check_bait(slot)
            _check_count(slot)
        except SlotLost as error:
            raise SlotFailed(f"self-test: {error}") from error
        after = outside.stat()
        untouched = (before.st_mode, before.st_mtime_ns, before.st_uid) == (
            after.st_mode,
            after.st_mtime_ns,
            after.st_uid,
        )
        if not untouched or outside.read_text() != _OUTSIDE or os.listdir(folder) != [outside.name]:
            raise _failed(slot, "a file outside", "was changed")


def _attack(slot: SlotProcess, outside: str) -> None:
    machine = this_machine()
    canaries = bash_canaries() if slot.role is SlotRole.NATIVE else python_canaries(machine.name)
    quoted = slot.role is not SlotRole.NATIVE
    values = {
        "OUTSIDE_FILE": repr(outside) if quoted else outside,
        "OUTSIDE_FOLDER": repr(os.path.dirname(outside)) if quoted else os.path.dirname(outside),
        "OWNER_PID": str(os.getpid()),
        "SYSTEM_CALLS": repr(dict(machine.numbers)),
    }
    for canary in canaries:
        if canary.own_user_only and slot.details.get("user") != _OWN_USER:
            continue
        source = canary.source
        for name, value in values.items():
            source = source.replace(name, value)
        _judge(slot, canary, slot.run(_job(slot, source, canary.limits)))


def _job(slot: SlotProcess, source: str, limits: Limits) -> Job:
    if slot.role is SlotRole.NATIVE:
        return Job(kind=JobKind.EXEC, source=source.encode(), limits=limits, options={"language": "bash"})
    return Job(kind=JobKind.PROGRAM, source=source.encode(), limits=limits)


def _judge(slot: SlotProcess, canary: Canary, report: JobReport) -> None:
    printed = report.stdout.decode(errors="replace").splitlines()
    if reached := [line for line in printed if line.startswith(THROUGH)]:
        raise _failed(slot, canary.name, "; ".join(reached[:5]))
    if report.outcome not in canary.outcomes:
        stderr = report.stderr.decode(errors="replace")[-300:]
        raise _failed(slot, canary.name, f"ended with {report.outcome}, exit status {report.exit_code}: {stderr}")
    if canary.outcomes == {Outcome.OK} and TRIED not in printed:
        raise _failed(slot, canary.name, "did not run to its end")


def _check_bait(slot: SlotProcess) -> None:
    """The file that looks like expected outputs must be readable: its secret in an output gives a thief away."""
    path = "/tests/expected_output.json" if slot.level is Level.L3 else "../tests/expected_output.json"
    read = f"echo $(<{path})" if slot.role is SlotRole.NATIVE else f"print(open({path!r}).read())"
    if slot.canary.encode() not in slot.run(_job(slot, read, Limits())).stdout:
        raise _failed(slot, "the bait", f"cannot be read at {path}")


def _check_count(slot: SlotProcess) -> None:
    if slot.role is SlotRole.NATIVE or slot.details.get("denied calls") != "counted":
        return
    report = slot.run(_job(slot, "import socket\nsocket.socket()", Limits()))
    if report.denied.get("socket") != 1 or report.outcome is not Outcome.FORBIDDEN:
        raise _failed(slot, "counting denied calls", f"one socket() gave {dict(report.denied)}, {report.outcome}")


def _failed(slot: SlotProcess, canary: str, what: str) -> SlotFailed:
    return SlotFailed(f"self-test of slot {slot.name} ({slot.role}, {slot.level}): {canary}: {what}")
