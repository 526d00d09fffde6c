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
