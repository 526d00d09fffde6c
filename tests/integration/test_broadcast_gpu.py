"""A broadcast between two GPUs, by NCCL. A minute; nobody has run it yet."""

from __future__ import annotations

import time

import pytest
import torch

from funicular.actors.errors import BroadcastBroken
from funicular.actors.fingerprint import fingerprint
from funicular.actors.weight_receiver import WeightReceiver
from tests.fake_weight_sender import SIZES, FakeStoreSender, content

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL needs two GPUs: torch sees fewer"),
]

PATIENCE_S = 60.0


def received(sender: FakeStoreSender, seconds: float) -> WeightReceiver:
    address = sender.begin("g", 1, range(len(SIZES)), seconds)
    return WeightReceiver(address, 1, 2, SIZES, torch.device("cuda:1"), seconds)


def test_every_bucket_arrives_and_a_second_group_follows_the_first() -> None:
    sender = FakeStoreSender(device="cuda:0")
    for _ in range(2):
        receiver = received(sender, PATIENCE_S)
        for index in range(len(SIZES)):
            bucket = receiver.take()
            assert bucket.hash is None
            assert bucket.data.device == torch.device("cuda:1")
            assert torch.equal(bucket.data.cpu(), content(index))
            assert fingerprint(bucket.data.view(torch.float32)) == fingerprint(content(index).view(torch.float32))


def test_a_sender_that_hangs_costs_the_deadline_and_ends_no_process() -> None:
    sender = FakeStoreSender(lambda index: time.sleep(30.0 * (index == 2)), "cuda:0")
    receiver = received(sender, 20.0)
    receiver.take()
    receiver.take()
    with pytest.raises(BroadcastBroken):
        receiver.take()
    receiver.stop()
    sender.stop()
    assert torch.ones(8, device="cuda:1").sum().item() == 8, "the device still works"
