"""The ledger survives a torn write, names what it cannot read, and finds what breaks law 3."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from funicular.launch.ledger import Ledger, LedgerError, audit, read_events


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def write(path: Path, events: Iterable[dict[str, Any]]) -> None:
    ledger = Ledger(path)
    for event in events:
        ledger.append(**event)
    ledger.close()


def disk_full(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def issued(*groups: str) -> list[dict[str, Any]]:
    return [
        {"event": "issued", "group": group, "task": f"task of {group}", "slot": slot, "replaces": None}
        for slot, group in enumerate(groups)
    ]


def trained(step: int, *groups: str) -> dict[str, Any]:
    return {"event": "trained", "step": step, "version": step, "groups": list(groups)}


def dropped(group: str, reason: str = "void") -> dict[str, Any]:
    return {"event": "dropped", "group": group, "reason": reason}


@pytest.mark.parametrize("torn", ['{"event":"trained","st', '{"event":"trained","step":1,"version":1,"groups":["g1"]}'])
def test_a_torn_last_line_is_cut_on_opening(path: Path, torn: str) -> None:
    write(path, issued("g1"))
    whole = path.read_text()
    path.write_text(whole + torn)
    assert [event["event"] for event in read_events(path)] == ["issued"]
    ledger = Ledger(path)
    assert path.read_text() == whole
    ledger.append("dropped", group="g1", reason="void")
    ledger.close()
    assert [event["event"] for event in read_events(path)] == ["issued", "dropped"]


def test_a_page_that_was_never_written_takes_what_stands_behind_it(path: Path) -> None:
    """A power cut may leave a file's length, and of its newest pages the later but not the earlier one."""
    write(path, issued("g1"))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event":"dro' + bytes(4096) + b'oup":"g1"}\n{"event":"finished"}\n')
    Ledger(path).close()
    assert path.read_bytes() == whole


async def test_all_who_wait_at_the_same_time_share_an_fsync_that_covers_them(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[int] = []

    def fsync(descriptor: int) -> None:
        time.sleep(0.02)
        syncs.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    ledger = Ledger(path)

    async def announce(number: int) -> None:
        await asyncio.sleep(number * 0.0001)
        ledger.append("issued", group=f"g{number}")
        end = path.stat().st_size
        await ledger.durable()
        assert max(syncs) >= end
        assert ledger.on_disk >= end

    await asyncio.gather(*(announce(number) for number in range(100)))
    assert len(syncs) < 10
    before = len(syncs)
    await ledger.durable()
    assert len(syncs) == before, "there is nothing new"


async def test_what_is_appended_during_a_shared_fsync_is_brought_to_disk_by_who_must_have_it_there(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()

    def fsync(descriptor: int) -> None:
        begun.set()
        assert go.wait(60)

    monkeypatch.setattr(os, "fsync", fsync)
    ledger = Ledger(path)
    ledger.append("issued", group="g1")
    shared = asyncio.create_task(ledger.durable())
    assert await asyncio.to_thread(begun.wait, 60)
    ledger.append("issued", group="g2")
    go.set()
    ledger.bring_to_disk()
    assert ledger.on_disk == path.stat().st_size
    await shared
    assert ledger.on_disk == path.stat().st_size, "the shared one, begun earlier, knows less"


async def test_after_a_failed_fsync_nothing_counts_as_being_on_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(path)
    ledger.append("attempt", attempt=1)
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", disk_full)
        with pytest.raises(OSError, match="No space left"):
            await ledger.durable()
    with pytest.raises(OSError, match="No space left"):  # although the disk works again
        await ledger.durable()
    assert ledger.on_disk == 0


def test_a_file_that_is_one_torn_line_becomes_empty(path: Path) -> None:
    path.write_text('{"event":"att')
    Ledger(path).close()
    assert path.read_text() == ""


@pytest.mark.parametrize("line", ["no json", "[1, 2]", '{"group": "g1"}'])
def test_a_line_that_is_no_event_is_named_with_file_and_line(path: Path, line: str) -> None:
    first, second = (json.dumps(event) for event in issued("g1", "g2"))
    path.write_text(f"{first}\n{line}\n{second}\n")
    with pytest.raises(LedgerError, match=r"ledger\.jsonl:2: not a ledger event: "):
        Ledger(path)
    with pytest.raises(LedgerError, match=r"ledger\.jsonl:2: "):
        audit(path)


def test_numbers_continue_after_reopening(path: Path) -> None:
    ledger = Ledger(path)
    assert ledger.begin_attempt() == 1
    assert [ledger.issue("t1", 0, None), ledger.issue("t2", 1, None)] == ["g000001", "g000002"]
    assert ledger.take_version() == 0
    ledger.append("publishing", version=0, step=0)
    assert ledger.take_version() == 1
    ledger.append("trained", step=1, version=1, groups=["g000001"])
    ledger.append("rolled_back", to_step=0, checkpoint=None, open=[])
    ledger.close()

    ledger = Ledger(path)
    assert ledger.begin_attempt() == 2
    assert ledger.issue("t1", 0, "g000001") == "g000003"
    assert ledger.take_version() == 2
    ledger.close()


def test_a_sound_ledger_has_no_problems(path: Path) -> None:
    write(path, [*issued("g1", "g2", "g3", "g4"), trained(1, "g2", "g1"), dropped("g3", "no_progress")])
    report = audit(path)
    assert report.problems == []
    assert report.trained == {"g1": 1, "g2": 1}
    assert report.trained_tasks == {1: ["task of g1", "task of g2"]}
    assert report.dropped == {"g3": "no_progress"}
    assert report.open == ["g4"]


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ([*issued("g1"), trained(1, "g1"), dropped("g1")], "g1 settled again after being trained at step 1"),
        ([*issued("g1"), dropped("g1"), trained(1, "g1")], "g1 settled again after being dropped (void)"),
        ([*issued("g1"), trained(1, "g1", "g1")], "g1 settled again after being trained at step 1"),
        ([dropped("g7")], "g7 settled but never issued"),
        ([*issued("g1", "g1")], "g1 issued twice"),
        ([*issued("g1", "g2"), trained(1, "g1"), trained(3, "g2")], "the trained steps have a gap: [1, 3]"),
        ([*issued("g1"), trained(2, "g1")], "the trained steps have a gap: [2]"),
    ],
)
def test_an_audit_finds_what_breaks_the_account(path: Path, events: list[dict[str, Any]], problem: str) -> None:
    write(path, events)
    assert audit(path).problems == [problem]


def test_an_audit_finds_a_trained_group_that_was_never_issued(path: Path) -> None:
    write(path, [*issued("g1"), trained(1, "g1", "g7")])
    assert "g7 settled but never issued" in audit(path).problems


def test_a_return_to_a_snapshot_voids_what_came_after_it(path: Path) -> None:
    back = {"event": "rolled_back", "to_step": 1, "checkpoint": "step_000001", "open": [1]}
    again = {"event": "issued", "group": "g4", "task": "task of g2", "slot": 1, "replaces": "g2"}
    write(path, [*issued("g1", "g2", "g3"), trained(1, "g1"), trained(2, "g2"), back, again, trained(2, "g4")])
    report = audit(path)
    assert report.problems == []
    assert report.trained == {"g1": 1, "g4": 2}
    assert report.dropped == {"g2": "rolled_back", "g3": "rolled_back"}
    assert report.trained_tasks[2] == ["task of g2"]
