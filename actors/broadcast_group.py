"""A process group of the learner's first rank and the workers of one engine, for one broadcast of weights.

NCCL between GPUs, gloo between CPUs. It is never torch's default group, of which every member has one for other things,
and it lasts for one install: a death breaks it and nothing else, and nobody has to remember what a group was left in.
docs/adr/0021 says why it is not vLLM's.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import PrefixStore, TCPStore
from torch.distributed.distributed_c10d import BroadcastOptions

from funicular.cluster.rendezvous import free_address, interface_towards

SENDER = 0
"""The member that has the weights."""


class BroadcastGroup:
    """One member's side. Every wait ends at the deadline.

    Args:
        store: where the members meet.
        member: this one; SENDER sends, the others receive.
        members: how many there are.
        device: of what is sent and received.
        deadline: by time.monotonic().
    """

    def __init__(self, store: TCPStore, member: int, members: int, device: torch.device, deadline: float) -> None:
        self._store = store
        self._member = member
        self._members = members
        self._deadline = deadline
        make = _gloo if device.type == "cpu" else _nccl
        self._backend: Any = make(store, member, members, device, self._left())

    def broadcast(self, data: torch.Tensor) -> None:
        """Send or fill (nbytes,) bytes; returns when this member is done with them.

        Raises:
            RuntimeError: another member died, or did not come in time.
        """
        options = BroadcastOptions()
        options.rootRank = SENDER
        options.rootTensor = 0
        options.timeout = self._left()
        backend = self._backend
        if backend is None:
            raise RuntimeError("the broadcast was given up")
        # With a time NCCL's wait blocks this thread too, until the bytes are there: any stream may read them then.
        backend.broadcast([data], options).wait(self._left())

    def finish(self) -> None:
        """Say that this member has everything; the sender waits until all have said so."""
        if self._member == SENDER:
            receivers = set(range(self._members)) - {SENDER}
            self._store.wait([_has_all(receiver) for receiver in receivers], self._left())
        else:
            self._store.set(_has_all(self._member), "")

    def abort(self) -> None:
        """Leave, and end what is still under way; in a thread, because NCCL may take its time over that too.

        Gloo cannot end it; its connections close when it has ended.
        """
        backend, self._backend = self._backend, None
        if backend is not None:
            threading.Thread(target=backend.abort, name="end of a broadcast", daemon=True).start()

    def _left(self) -> timedelta:
        return timedelta(seconds=max(0.001, self._deadline - time.monotonic()))


def own_stream(device: torch.device) -> AbstractContextManager[Any]:
    """For a thread that is a member. All threads share a device's default stream, on which one whose peers hang would
    hold up the others and the device's own work. Unverified: nobody has run this on GPUs."""
    return torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()


def open_store(seconds: float) -> tuple[TCPStore, str, int]:
    """The sender's: the store, and the address at which the others reach it."""
    host, port = free_address()
    store = TCPStore(host, port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=seconds))
    return store, host, port


def reach_store(host: str, port: int, seconds: float) -> TCPStore:
    """A receiver's way to the sender's store."""
    return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=seconds))


def _has_all(member: int) -> str:
    return f"member {member} has all"


def _gloo(store: TCPStore, member: int, members: int, device: torch.device, timeout: timedelta) -> Any:
    from torch.distributed import ProcessGroupGloo

    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    interface = interface_towards(store.host, store.port)  # else that of the node's name, which often is a loopback
    options._devices = [ProcessGroupGloo.create_device(interface=interface or "")]
    options._timeout = timeout
    return ProcessGroupGloo(PrefixStore("gloo", store), member, members, options)


def _nccl(store: TCPStore, member: int, members: int, device: torch.device, timeout: timedelta) -> Any:
    """Unverified: nobody has run this on GPUs."""
    from torch.distributed import ProcessGroupNCCL

    torch.cuda.set_device(device)
    # Read when a group is made. By default a collective that is late ends the process: the learner, or the engine. All
    # other groups of this process were made before.
    os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
    options = ProcessGroupNCCL.Options()
    options.global_ranks_in_group = list(range(members))
    options._timeout = timeout
    return ProcessGroupNCCL(PrefixStore("nccl", store), member, members, options)
