"""A sender and receivers in threads of their own, with real gloo between them: all bytes, or an error in time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import xxhash

from funicular.actors.broadcast_group import BroadcastGroup, reach_store
from funicular.actors.errors import BroadcastBroken
from funicular.actors.weight_receiver import Received, WeightReceiver
from tests.fake_weight_sender import SIZES, FakeStoreSender, content

CPU = torch.device("cpu")
PATIENCE_S = 30.0


def receivers(address: tuple[str, int], count: int, sizes: Sequence[int], seconds: float) -> list[WeightReceiver]:
    return [WeightReceiver(address, 1 + number, 1 + count, sizes, CPU, seconds) for number in range(count)]


def each_takes(members: Sequence[WeightReceiver]) -> list[Received]:
    """At the same time, as workers do."""
    with ThreadPoolExecutor(len(members)) as pool:
        return list(pool.map(WeightReceiver.take, members))


@pytest.mark.parametrize("workers", [1, 3])
def test_every_worker_receives_every_bucket_and_its_hash(workers: int) -> None:
    sender = FakeStoreSender()
    for first in (0, 2):  # a second broadcast has a group of its own
        address = sender.begin("g", workers, range(first, len(SIZES)), PATIENCE_S)
        members = receivers(address, workers, SIZES[first:], PATIENCE_S)
        for index in range(first, len(SIZES)):
            for received in each_takes(members):
                assert torch.equal(received.data, content(index))
                assert received.hash == xxhash.xxh3_64_intdigest(content(index).numpy().data)


def test_two_generators_do_not_wait_for_each_other() -> None:
    sender = FakeStoreSender()
    places = [sender.begin(name, 1, range(len(SIZES)), PATIENCE_S) for name in ("slow", "fast")]
    slow, fast = (receivers(place, 1, SIZES, PATIENCE_S)[0] for place in places)
    slow.take()
    for index in range(len(SIZES)):
        assert torch.equal(fast.take().data, content(index))
    assert torch.equal(slow.take().data, content(1))
    slow.stop()


def test_a_worker_that_never_joins_is_an_error_by_the_deadline() -> None:
    address = FakeStoreSender().begin("g", 2, range(len(SIZES)), 2.0)
    (alone, *_) = [WeightReceiver(address, 1, 3, SIZES, CPU, 2.0)]
    with pytest.raises(BroadcastBroken):
        alone.take()


def test_a_sender_that_hangs_is_an_error_by_the_deadline_and_what_came_before_is_good() -> None:
    sender = FakeStoreSender(lambda index: time.sleep(4.0 * (index == 2)))
    address = sender.begin("g", 1, range(len(SIZES)), 2.0)
    (member,) = receivers(address, 1, SIZES, 2.0)
    for index in range(2):
        assert torch.equal(member.take().data, content(index))
    with pytest.raises(BroadcastBroken):
        member.take()


def test_nobody_sends() -> None:
    (member,) = receivers(("127.0.0.1", 9), 1, SIZES, 2.0)
    with pytest.raises(BroadcastBroken):
        member.take()


def test_a_sender_that_fails_ends_the_wait_of_its_receivers_long_before_the_deadline() -> None:
    def lose(index: int) -> None:
        if index == 3:
            raise RuntimeError("the bucket is lost")

    address = FakeStoreSender(lose).begin("g", 2, range(len(SIZES)), 600.0)
    members = receivers(address, 2, SIZES, 600.0)
    for _ in range(3):
        each_takes(members)
    for member in members:
        with pytest.raises(BroadcastBroken):
            member.take()


def test_a_receiver_that_gives_up_ends_the_sender(caplog: pytest.LogCaptureFixture) -> None:
    reads: list[int] = []
    address = FakeStoreSender(reads.append).begin("g", 1, range(len(SIZES)), 600.0)
    (member,) = receivers(address, 1, SIZES, 600.0)
    member.take()
    member.stop()
    del member
    until = time.monotonic() + PATIENCE_S
    while "the broadcast to g broke" not in caplog.text and time.monotonic() < until:
        time.sleep(0.05)
    assert "the broadcast to g broke" in caplog.text
    assert len(reads) < len(SIZES)


def test_what_was_stopped_sends_no_more_buckets() -> None:
    reads: list[int] = []
    sender = FakeStoreSender(reads.append)
    address = sender.begin("g", 1, range(len(SIZES)), PATIENCE_S)
    sender.stop()
    (member,) = receivers(address, 1, SIZES, PATIENCE_S)
    with pytest.raises(BroadcastBroken):
        member.take()
    assert not reads


def test_members_of_a_group_wait_no_longer_than_until_its_deadline() -> None:
    from funicular.actors.broadcast_group import open_store

    store, host, port = open_store(2.0)
    with pytest.raises(RuntimeError):
        BroadcastGroup(store, 0, 2, CPU, time.monotonic() + 1.0)
    assert reach_store(host, port, 2.0).port == port
