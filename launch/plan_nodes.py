"""One way in which engines and learner ranks stand on nodes: an engine on one node, the rest where there is room."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from funicular.launch.build import demand
from funicular.launch.config import Config


@dataclass(slots=True)
class _Node:
    room: int
    holds: dict[str, list[int]] = field(default_factory=dict)
    """Numbers of engines, or of ranks, by role."""


def node_map(config: Config, per_node: int) -> list[str]:
    """A line for each node of `per_node` devices; Ray decides anew in every run.

    Raises:
        ValueError: an engine has more workers than a node has devices.
    """
    asked = demand(config)
    widths = {engines.role: engines.workers for engines in asked.engines}
    units = [
        (widths.get(role, 1), role, number)
        for role, workers in asked.roles.items()
        for number in range(workers // widths.get(role, 1))
    ]
    widest, role, _ = max(units)
    if widest > per_node:
        raise ValueError(f"{role}: an engine of {widest} workers stands on one node, and --gpus-per-node={per_node}")
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


def _said(node: _Node, widths: dict[str, int]) -> Iterator[str]:
    for role, numbers in node.holds.items():
        width = widths.get(role, 1)
        of_each = f" x {width}" if width > 1 else ""
        yield f"{role} {_ranges(numbers)}{of_each}"


def _ranges(numbers: list[int]) -> str:
    first, last = numbers[0], numbers[-1]
    if last - first + 1 != len(numbers):
        return " ".join(map(str, numbers))
    return str(first) if first == last else f"{first}-{last}"
