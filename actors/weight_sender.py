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

from funicular.actors.broadcast_group import SENDER, BroadcastGroup, open_store, own_stream
from funicular.actors.errors import first_line

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
        make_group = partial(BroadcastGroup, store, SENDER, workers + 1, self._device, deadline)
        self._under_way[generator] = _Broadcast(generator, make_group, reads, self._device)
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
        make_group: Callable[[], BroadcastGroup],
        reads: Sequence[Callable[[], torch.Tensor]],
        device: torch.device,
    ) -> None:
        self._generator = generator
        self._device = device
        self._group: BroadcastGroup | None = None
        self._stopped = False
        name = f"broadcast to {generator}"
        threading.Thread(target=self._run, args=(make_group, reads), name=name, daemon=True).start()

    def _run(self, make_group: Callable[[], BroadcastGroup], reads: Sequence[Callable[[], torch.Tensor]]) -> None:
        try:
            with own_stream(self._device):
                self._send(make_group, reads)
        except Exception as error:  # the generator sees it too, and takes the object store
            if not self._stopped:
                log.warning("the broadcast to %s broke: %s", self._generator, first_line(error))
        self.stop()

    def _send(self, make_group: Callable[[], BroadcastGroup], reads: Sequence[Callable[[], torch.Tensor]]) -> None:
        group = self._group = make_group()
        for read in reads:
            if self._stopped:
                return
            group.broadcast(read())
        group.finish()

    def stop(self) -> None:
        self._stopped = True
        group, self._group = self._group, None
        if group is not None:
            group.abort()
