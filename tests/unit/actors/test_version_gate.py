"""Tokens wait until their weights are verified, and never leave if they are not."""

import asyncio

import pytest

from funicular.actors.errors import GroupFailed
from funicular.actors.version_gate import VersionGate


def gate_with(*labels: str) -> VersionGate:
    gate = VersionGate()
    for label in labels:
        gate.open(label, int(label.split(".")[0]))
    return gate


async def test_tokens_of_committed_weights_leave_with_their_version() -> None:
    gate = gate_with("1.1", "2.2")
    gate.commit("1.1")
    gate.commit("2.2")
    assert await gate.versions({"1.1", "2.2"}, deadline_s=1) == {"1.1": 1, "2.2": 2}
    assert gate.committed == 2


async def test_tokens_of_pending_weights_wait_for_the_commit() -> None:
    gate = gate_with("1.1")
    waiting = asyncio.create_task(gate.versions({"1.1"}, deadline_s=5))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert gate.committed is None
    gate.commit("1.1")
    assert await waiting == {"1.1": 1}


async def test_tokens_of_rejected_weights_fail_their_group_with_the_reason() -> None:
    gate = gate_with("1.1", "2.2")
    gate.commit("1.1")
    waiting = asyncio.create_task(gate.versions({"1.1", "2.2"}, deadline_s=5))
    await asyncio.sleep(0)
    gate.reject("2.2", "canary was wrong")
    with pytest.raises(GroupFailed, match="canary was wrong") as caught:
        await waiting
    assert caught.value.reason == "weights_rejected"
    assert gate.committed == 1


async def test_nobody_waits_for_ever() -> None:
    with pytest.raises(GroupFailed, match="not verified within"):
        await gate_with("1.1").versions({"1.1"}, deadline_s=0.01)


async def test_weights_that_nobody_sent_are_our_bug() -> None:
    with pytest.raises(RuntimeError, match="'unverified', which were never installed"):
        await VersionGate().versions({"unverified"}, deadline_s=1)


async def test_a_label_is_used_once() -> None:
    gate = gate_with("1.1")
    assert not gate.is_new("1.1")
    assert gate.is_new("1.2")
    with pytest.raises(RuntimeError, match="opened before"):
        gate.open("1.1", 1)
