"""One way in which engines and learner ranks stand on nodes: an engine on one node, the rest where there is room."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from funicular.cluster.roles import LEARNER, TEACHER
from funicular.launch.build import demand
from funicular.launch.config import Config


@dataclass(slots=True)
class _Node:
    room: int
    holds: dict[str, list[int]] = field(default_factory=dict)
    """Numbers of engines, or of ranks, by role."""


def node_map(config: Config, per_node: int) -> list[str]:
    """A line for each node of `per_node` devices; none if an engine is larger. Ray decides anew in every run."""
    asked = demand(config)
    widths = {engines.role: engines.workers for engines in asked.engines}
    units = [
        (widths.get(role, 1), role, number)
        for role, workers in asked.roles.items()
        for number in range(workers // widths.get(role, 1))
    ]
    if too_wide(config, per_node):
        return []
    nodes: list[_Node] = []
    for width, role, number in sorted(units, key=lambda unit: -unit[0]):
        node = next((node for node in nodes if node.room >= width), None)
        if node is None:
            nodes.append(node := _Node(room=per_node))
        node.room -= width
        node.holds.setdefault(role, []).append(number)
    return [
        f"node {number:<4} {', '.join(_said(node, widths))}{f'; {node.room} free' if node.room else ''}"
        for number, node in enumerate(nodes)
    ]


def too_wide(config: Config, per_node: int) -> str | None:
    """Why an engine does not fit on a node of `per_node` devices; None: all do."""
    sections = {TEACHER: "distillation", LEARNER: "generator"}  # where engines stand beside ranks
    widths = {
        f"{sections.get(engines.role, engines.role)}.tensor_parallel_size": engines.workers
        for engines in demand(config).engines
    }
    key, width = max(widths.items(), key=lambda item: item[1], default=("", 0))
    if width <= per_node:
        return None
    return (
        f"{key}={width}: an engine stands on one node, and a node has {per_node}. Lower it to {per_node}, or say "
        f"--gpus-per-node={width} if there are such nodes"
    )


def _said(node: _Node, widths: dict[str, int]) -> Iterator[str]:
    for role, numbers in node.holds.items():
        width = widths.get(role, 1)
        of_each = f" x {width}" if width > 1 else ""
        if role == LEARNER and role in widths:
            yield f"generator {_ranges(numbers)}{of_each}, on the GPUs of as many learner ranks"
        else:
            yield f"{role} {_ranges(numbers)}{of_each}"


def _ranges(numbers: list[int]) -> str:
    first, last = numbers[0], numbers[-1]
    if last - first + 1 != len(numbers):
        return " ".join(map(str, numbers))
    return str(first) if first == last else f"{first}-{last}"
