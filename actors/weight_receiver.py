"""Inside an engine worker: receives the buckets of one install in a thread, two ahead of the one that is loaded."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from funicular.actors.broadcast_group import BroadcastGroup, own_stream, reach_store
from funicular.actors.errors import BroadcastBroken, first_line

log = logging.getLogger(__name__)

_WAITING = 1
"""Buckets that are here and were not asked for; one more is on its way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One bucket."""

    data: torch.Tensor
    """(nbytes,) uint8, on the worker's device."""
    hash: int | None
    """xxh3_64 of the bytes. None: they are on a device, where the fingerprints of its tensors say as much."""


class WeightReceiver:
    """Begins when the first bucket is asked for: the engine is paused then. While it runs, its workers' own collectives
    and this could wait for each other, where one GPU has begun the one and another the other.

    Args:
        address: where the sender waits.
        member: this worker's number in the group, from 1 on.
        sizes: bytes of each bucket, in the order of sending.
        seconds: from now, within which all must have come and been taken.
    """

    def __init__(
        self,
        address: tuple[str, int],
        member: int,
        members: int,
        sizes: Sequence[int],
        device: torch.device,
        seconds: float,
    ) -> None:
        self._address = address
        self._member = member
        self._members = members
        self._sizes = sizes
        self._device = device
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._here: queue.Queue[Received | BroadcastBroken] = queue.Queue(_WAITING)
        self._group: BroadcastGroup | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="weight receiver", daemon=True)

    def take(self) -> Received:
        """The next bucket, as soon as it is here.

        Raises:
            BroadcastBroken: it did not come.
        """
        if self._thread.ident is None:
            self._thread.start()
        try:
            found = self._here.get(timeout=self._left())
        except queue.Empty:
            raise BroadcastBroken(f"a bucket did not come in the {self._seconds:.0f} s that all may take") from None
        if isinstance(found, BroadcastBroken):
            raise found
        if found.data.is_cuda:  # it was allocated for another thread's stream, which must not use it again too early
            found.data.record_stream(torch.cuda.current_stream(found.data.device))
        return found

    def stop(self) -> None:
        """Nothing will be taken any more."""
        self._stopped = True
        while not self._here.empty():
            self._here.get_nowait()
        self._leave()

    def _run(self) -> None:
        try:
            with own_stream(self._device):
                self._receive()
        except queue.Full:
            log.warning("buckets were received that nobody asked for in time")
        except Exception as error:  # for whoever asks for the next bucket
            with contextlib.suppress(queue.Full):
                self._here.put(BroadcastBroken(first_line(error)), timeout=self._left())
        self._leave()

    def _receive(self) -> None:
        store = reach_store(*self._address, self._left())
        group = self._group = BroadcastGroup(store, self._member, self._members, self._device, self._deadline)
        for size in self._sizes:
            data = torch.empty(size, dtype=torch.uint8, device=self._device)
            group.broadcast(data)
            self._here.put(Received(data=data, hash=_hash(data)), timeout=self._left())
            if self._stopped:
                return
        group.finish()

    def _leave(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            group.abort()

    def _left(self) -> float:
        return max(0.001, self._deadline - time.monotonic())


def _hash(data: torch.Tensor) -> int | None:
    import xxhash

    return xxhash.xxh3_64_intdigest(data.numpy().data) if data.device.type == "cpu" else None
