"""What all nodes do, asked once a step. A node that does not answer is left out, and asked no more until it does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from funicular.cluster.node_stats import node_stats_actor

log = logging.getLogger(__name__)

ANSWER_S = 1.0
"""Seconds of a step that are given to slow nodes."""


@dataclass(eq=False)
class _Member:
    actor: Any
    asked: Any = None
    """Reference of a report that has not come yet."""


class NodeMonitors:
    """One `NodeStats` on each node of the cluster; nodes may come and go."""

    def __init__(
        self,
        make_actor: Callable[[str], Any] = lambda node: node_stats_actor(node).remote(),
        list_nodes: Callable[[], list[dict[str, Any]]] = lambda: ray.nodes(),
    ) -> None:
        self._make_actor = make_actor
        self._list_nodes = list_nodes
        self._members: dict[str, _Member] = {}
        self._names: dict[str, str] = {}
        self._follow()

    async def metrics(self) -> dict[str, float]:
        """`system/<node>/<name>` since the last call, of the nodes that answer within `ANSWER_S`."""
        return await asyncio.to_thread(self._metrics)

    def _follow(self) -> None:
        """Watch the nodes that are there now."""
        self._names = node_names(self._list_nodes())
        self._members = {node: self._members.get(node) or _Member(self._make_actor(node)) for node in self._names}

    def _metrics(self) -> dict[str, float]:
        self._follow()
        new = [member for member in self._members.values() if member.asked is None]
        for member in new:
            member.asked = member.actor.report.remote()
        if new:
            ray.wait([member.asked for member in new], num_returns=len(new), timeout=ANSWER_S)
        metrics: dict[str, float] = {}
        for node, member in list(self._members.items()):
            if ray.wait([member.asked], timeout=0)[0]:
                report = self._answer(node, member)
                metrics |= {f"system/{self._names[node]}/{name}": value for name, value in report.items()}
        return metrics

    def _answer(self, node: str, member: _Member) -> Mapping[str, float]:
        reference, member.asked = member.asked, None
        try:
            return ray.get(reference)
        except RayError as error:
            log.warning("node %s does not say how it does: %s", self._names[node], error)
            del self._members[node]  # the next call makes another, if the node is still there
            return {}


def node_names(nodes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Id of each living node to what people call it: its address, and where several share one a part of the id too.

    Args:
        nodes: what `ray.nodes()` says.
    """
    alive = {node["NodeID"]: node["NodeManagerAddress"] for node in nodes if node["Alive"]}
    shared = [*alive.values()]
    return {node: address if shared.count(address) == 1 else f"{address}-{node[:6]}" for node, address in alive.items()}
