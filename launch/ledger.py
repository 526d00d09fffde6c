"""The ledger: the durable account of each group (law 3).

`ledger.jsonl` has one event a line, on disk before what it announces is relied upon: append, then await `durable`. All
who wait at the same time share one fsync, so that thousands of groups a second can be accounted for. Events:

    attempt      {attempt}                     a stretch of the run begins
    issued       {group, task, slot, replaces} a task was drawn for a slot, under a new group id
    generated    {group, generator, oldest, newest}
    scored       {group, valid}
    dropped      {group, reason}               the group will not be trained
    trained      {step, version, groups}       they made the optimizer steps of this step; version is what comes of it
    publishing   {version, step}               initial or restored weights are about to be published
    published    {version, step}               committed by at least one generator
    rolled_back  {to_step, checkpoint, asked_for, open}  all after the snapshot is void; these slots are issued again
    finished     {step, reason}

A group's fate is the last of trained or dropped that a later rolled_back did not void.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class LedgerError(ValueError):
    """The ledger's file cannot be what this program wrote."""


class Ledger:
    """Appends events; on opening, learns from the file what numbers are taken."""

    def __init__(self, path: Path) -> None:
        self.path = path
        _cut_torn_end(path)
        events = list(read_events(path)) if path.exists() else []
        self.attempt = max((e["attempt"] for e in events if e["event"] == "attempt"), default=0)
        self.next_version = 1 + max((e["version"] for e in events if "version" in e), default=-1)
        self._issued = sum(e["event"] == "issued" for e in events)
        self.last_event_time = time.monotonic()
        self._file = path.open("ab")
        self._written = self._file.tell()
        self.on_disk = self._written
        """Bytes of the file that no crash can take any more."""
        self._syncing = asyncio.Lock()
        self._lost: OSError | None = None

    def append(self, event: str, **fields: Any) -> None:
        """Write one event. It survives this process at once, and the machine after `durable`."""
        line = json.dumps({"event": event, "time": round(time.time(), 3), **fields}, separators=(",", ":"))
        self._written += self._file.write(line.encode() + b"\n")
        self._file.flush()
        self.last_event_time = time.monotonic()

    @property
    def written(self) -> int:
        """Bytes of the file; `on_disk` of them are safe."""
        return self._written

    async def durable(self) -> None:
        """Return when every event so far is on disk; others may be appended meanwhile.

        Raises:
            OSError: the disk failed, now or in an earlier call: what was written since is not known to be there.
        """
        wanted = self._written
        async with self._syncing:
            if self.on_disk < wanted:
                reached = self._written
                await asyncio.to_thread(self._sync)
                self.on_disk = max(self.on_disk, reached)

    def bring_to_disk(self) -> None:
        """The same, but nothing can be appended before this returns; stops the event loop meanwhile."""
        self._sync()
        self.on_disk = self._written

    def _sync(self) -> None:
        if self._lost is not None:
            raise self._lost
        try:
            os.fsync(self._file.fileno())
        except OSError as error:  # a later fsync may succeed although these pages are gone
            self._lost = error
            raise

    def begin_attempt(self) -> int:
        """Announce a new stretch of the run; its number."""
        self.attempt += 1
        self.append("attempt", attempt=self.attempt)
        return self.attempt

    def issue(self, task_id: str, slot: int, replaces: str | None) -> str:
        """Account a new group for `slot`; its id, never used before in this run folder."""
        self._issued += 1
        group_id = f"g{self._issued:06d}"
        self.append("issued", group=group_id, task=task_id, slot=slot, replaces=replaces)
        return group_id

    def take_version(self) -> int:
        """The next policy version that was never used in this run folder, not even before a return."""
        version = self.next_version
        self.next_version += 1
        return version

    def close(self) -> None:
        """Close the file; no events after this."""
        self._file.close()


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The ledger's events in order.

    Raises:
        LedgerError: a line is not an event; names file and line.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return  # torn by a crash before its fsync: nothing relied on it
            try:
                event = json.loads(line)
            except json.JSONDecodeError as error:
                raise LedgerError(f"{path}:{number}: not a ledger event: {line[:80]!r}") from error
            if not isinstance(event, dict) or "event" not in event:
                raise LedgerError(f"{path}:{number}: not a ledger event: {line[:80]!r}")
            yield event


def _cut_torn_end(path: Path) -> None:
    """Cut what a crash tore, on which nothing relied: half a line, or what follows a page that was never written.

    Such a page reads as zeros.
    """
    if not path.exists():
        return
    data = path.read_bytes()
    written = data if (hole := data.find(b"\0")) < 0 else data[:hole]
    whole = written.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The surviving history of a ledger, checked."""

    trained: Mapping[str, int]
    """Group id to the step that trained it."""
    trained_tasks: Mapping[int, Sequence[str]]
    """Step to the task ids it trained, in slot order."""
    dropped: Mapping[str, str]
    """Group id to reason; groups that a return to a snapshot voided have reason `rolled_back`."""
    open: Sequence[str]
    """Issued, and neither trained nor dropped yet."""
    problems: Sequence[str]
    """Violations of law 3; empty in a sound ledger."""


def audit(path: Path) -> Audit:
    """Follow every group through the ledger and check that each is accounted for exactly once."""
    trained: dict[str, int] = {}
    dropped: dict[str, str] = {}
    issued: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    for event in read_events(path):
        kind = event["event"]
        if kind == "issued":
            if event["group"] in issued:
                problems.append(f"{event['group']} issued twice")
            issued[event["group"]] = event
        elif kind == "dropped":
            _settle(event["group"], issued, trained, dropped, problems)
            dropped[event["group"]] = event["reason"]
        elif kind == "trained":
            for group in event["groups"]:
                _settle(group, issued, trained, dropped, problems)
                trained[group] = event["step"]
        elif kind == "rolled_back":
            for group, step in list(trained.items()):
                if step > event["to_step"]:
                    del trained[group]
                    dropped[group] = "rolled_back"
            for group in issued:
                if group not in trained and group not in dropped:
                    dropped[group] = "rolled_back"
    if set(trained.values()) != set(range(1, max(trained.values(), default=0) + 1)):
        problems.append(f"the trained steps have a gap: {sorted(set(trained.values()))}")
    steps: dict[int, list[str]] = {}
    known = (item for item in trained.items() if item[0] in issued)
    for group, step in sorted(known, key=lambda item: issued[item[0]]["slot"]):
        steps.setdefault(step, []).append(issued[group]["task"])
    still_open = [group for group in issued if group not in trained and group not in dropped]
    return Audit(trained=trained, trained_tasks=steps, dropped=dropped, open=still_open, problems=problems)


def _settle(
    group: str,
    issued: Mapping[str, Any],
    trained: Mapping[str, int],
    dropped: Mapping[str, str],
    problems: list[str],
) -> None:
    if group not in issued:
        problems.append(f"{group} settled but never issued")
    if group in trained:
        problems.append(f"{group} settled again after being trained at step {trained[group]}")
    if group in dropped:
        problems.append(f"{group} settled again after being dropped ({dropped[group]})")
