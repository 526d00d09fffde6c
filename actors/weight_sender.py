"""In the learner's first rank: broadcasts published buckets, a thread for each engine, while the learner is idle."""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.distributed import TCPStore

from funicular.actors.broadcast_group import SENDER, BroadcastGroup, open_store

log = logging.getLogger(__name__)


class WeightSender:
    """What is under way, by the generator that receives it.

    Args:
        device: the rank's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._under_way: dict[str, _Broadcast] = {}

    def begin(self, generator: str, workers: int, buckets: Sequence[Any], seconds: float) -> tuple[str, int]:
        """Begin to send to the workers of a generator's engine; returns the address at which they join.

        Args:
            buckets: ray.ObjectRef of a (nbytes,) uint8 array each, in order.
            seconds: within which they must have all.
        """
        if generator in self._under_way:
            self._under_way[generator].stop()
        deadline = time.monotonic() + seconds
        store, host, port = open_store(seconds)
        reads = [partial(self.read, index, bucket, deadline) for index, bucket in enumerate(buckets)]
        self._under_way[generator] = _Broadcast(generator, store, workers + 1, reads, self._device, deadline)
        return host, port

    def read(self, index: int, bucket: Any, deadline: float) -> torch.Tensor:
        """(nbytes,) the bytes of a bucket, on the device; on a CPU they stay where they are in the object store."""
        import ray

        data = ray.get(bucket, timeout=max(0.0, deadline - time.monotonic()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it is not writable
            return torch.from_numpy(data).to(self._device)

    def stop(self) -> None:
        """Give up what is still under way: the device is needed, or these weights are no longer the newest.

        Publishing waits for all installs, so that only generators that are dead or have refused are cut off here.
        """
        for broadcast in self._under_way.values():
            broadcast.stop()
        self._under_way.clear()


class _Broadcast:
    """One thread, for which nobody waits: it ends at the deadline, whatever hangs."""

    def __init__(
        self,
        generator: str,
        store: TCPStore,
        members: int,
        reads: Sequence[Callable[[], torch.Tensor]],
        device: torch.device,
        deadline: float,
    ) -> None:
        self._generator = generator
        self._place = (store, SENDER, members, device, deadline)
        self._reads = reads
        self._group: BroadcastGroup | None = None
        self._stopped = False
        threading.Thread(target=self._run, name=f"broadcast to {generator}", daemon=True).start()

    def _run(self) -> None:
        try:
            self._group = BroadcastGroup(*self._place)
            for read in self._reads:
                if self._stopped:
                    break
                self._group.broadcast(read())
            else:
                self._group.finish()
        except Exception as error:  # the generator sees it too, and takes the object store
            if not self._stopped:
                log.warning("the broadcast to %s broke: %s", self._generator, str(error).partition("\n")[0])
        self.stop()

    def stop(self) -> None:
        self._stopped = True
        if self._group is not None:
            self._group.abort()
