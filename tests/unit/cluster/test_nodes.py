"""What is said of nodes, and under which name."""

from __future__ import annotations

from typing import Any

import pytest

from funicular.cluster.node_monitors import node_names
from funicular.cluster.node_stats import Sample, node_metrics


def sample(cpu: float, gib: float, *gpus: tuple[float, float]) -> Sample:
    return Sample(
        cpu_frac=cpu,
        memory_bytes=int(gib * 2**30),
        memory_frac=gib / 100,
        gpus=tuple((busy, int(used * 2**30)) for busy, used in gpus),
    )


def test_what_was_computed_is_a_mean_and_memory_the_largest() -> None:
    metrics = node_metrics([sample(0.5, 10, (1.0, 70), (0.0, 1)), sample(1.0, 8, (0.5, 72), (0.5, 3))])
    assert metrics == {
        "cpu_frac": 0.75,
        "memory_gib": 10,
        "memory_frac": pytest.approx(0.1),
        "gpu0_frac": 0.75,
        "gpu0_memory_gib": 72,
        "gpu1_frac": 0.25,
        "gpu1_memory_gib": 3,
    }


def test_nothing_is_said_of_a_time_without_looks() -> None:
    assert node_metrics([]) == {}


def node(node_id: str, address: str, alive: bool = True) -> dict[str, Any]:
    return {"NodeID": node_id, "NodeManagerAddress": address, "Alive": alive}


def test_nodes_are_called_by_their_address_and_told_apart_where_they_share_it() -> None:
    nodes = [node("aaaaaaaa", "10.0.0.1"), node("bbbbbbbb", "10.0.0.2"), node("cccccccc", "10.0.0.2")]
    assert node_names([*nodes, node("dddddddd", "10.0.0.1", alive=False)]) == {
        "aaaaaaaa": "10.0.0.1",
        "bbbbbbbb": "10.0.0.2-bbbbbb",
        "cccccccc": "10.0.0.2-cccccc",
    }
