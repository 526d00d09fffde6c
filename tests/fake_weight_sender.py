"""`WeightSender`s without an object store, or to whose bytes something happens on the way."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch

from funicular.actors.weight_sender import WeightSender

Fate = Literal["damaged", "dies", "hangs"]


SIZES = [100_000, 64, 100_032, 128, 300_032, 7 * 64, 64]
"""Bytes of some buckets."""


def content(index: int) -> torch.Tensor:
    """Of the bucket of that size."""
    values = np.random.default_rng(index).standard_normal(SIZES[index] // 4, dtype=np.float32)
    return torch.from_numpy(values).view(torch.uint8)


class FakeStoreSender(WeightSender):
    """Has those bytes without an object store; before each bucket it does what it was told to."""

    def __init__(self, before: Callable[[int], None] = lambda index: None, device: str = "cpu") -> None:
        super().__init__(torch.device(device))
        self._before = before

    def read(self, index: int, bucket: int, deadline: float) -> torch.Tensor:
        self._before(index)
        return content(bucket).to(self._device)


class FakeFaultySender(WeightSender):
    """The sender of a rank, in its real process, but something happens at one bucket, once.

    Args:
        index: of the bucket, among those of one broadcast.
    """

    def __init__(self, device: torch.device, fate: Fate, index: int) -> None:
        super().__init__(device)
        self._fate = fate
        self._index = index
        self.reached = False

    def read(self, index: int, bucket: Any, deadline: float) -> torch.Tensor:
        data = super().read(index, bucket, deadline)
        if index != self._index or self.reached:
            return data
        self.reached = True
        if self._fate == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._fate == "hangs":
            time.sleep(max(0.0, deadline + 5.0 - time.monotonic()))
        damaged = data.clone()
        damaged[100] ^= 1
        return damaged


def faulty(fate: Fate, index: int) -> Callable[[Any], None]:
    """What a learner rank is asked to run (`__ray_call__`), for its next broadcast to be so."""

    def arm(rank: Any) -> None:
        rank._sender = FakeFaultySender(rank._device, fate, index)

    return arm


def reached(rank: Any) -> bool:
    """Whether it has happened; asked of a rank, too."""
    return bool(rank._sender.reached)
