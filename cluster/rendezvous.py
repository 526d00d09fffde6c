"""Where the ranks of one process group meet."""

from __future__ import annotations

import random
import socket

_PORTS = range(20_000, 30_000)
"""Between those of Ray's workers and those that Linux gives to outgoing connections: a busy node opens hundreds of
them while a process group gets ready."""

NCCL_ENVIRONMENT = {"TORCH_NCCL_DUMP_ON_TIMEOUT": "0"}
"""Of processes whose groups are NCCL's, before the first is made. By default a group that breaks has torch's watchdog
end the whole process some minutes later, to save traces; a broken broadcast of weights must not cost the learner or an
engine. Unverified: nobody has run this on GPUs."""


def free_address() -> tuple[str, int]:
    """This node's address, as its peers see it, and a port that is free on it now.

    Called on the actor that will listen. The port is free until somebody takes it: the process group must be made
    right after, and a collision shows as a failed start, which is tried again.

    Raises:
        RuntimeError: all ports are taken.
    """
    import ray.util

    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):  # a seeded one would meet its twin
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return ray.util.get_node_ip_address(), port
    raise RuntimeError(f"no port from {_PORTS.start} to {_PORTS.stop - 1} is free for the learner's process group")


def interface_towards(host: str, port: int) -> str | None:
    """Name of the network interface by which this node reaches a peer; None: its address is that of none.

    Gloo would take the interface of the address that the node's own name resolves to, which often is a loopback.
    """
    import psutil

    family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)  # sends nothing, chooses a route
        mine = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == mine for one in addresses):
            return name
    return None
