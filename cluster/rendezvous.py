"""Where the ranks of one process group meet."""

from __future__ import annotations

import socket


def free_address() -> tuple[str, int]:
    """This node's address, as its peers see it, and a port that is free on it now.

    Called on the actor that will listen. The port is free until somebody takes it: the process group must be made
    right after, and a collision shows as a failed start, which is tried again.
    """
    import ray.util

    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), probe.getsockname()[1]


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
