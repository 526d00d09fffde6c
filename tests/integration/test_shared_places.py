"""Where ranks and engines stand that share GPUs: on Ray's accounts, which need no real ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from funicular.cluster.session import ClusterTooSmall
from funicular.cluster.shared_places import SharedPlaces

pytestmark = pytest.mark.integration

WORKERS, PLACES = 2, 3
PLACE = {"CPU": 2.0 * WORKERS, "GPU": float(WORKERS)}
Seen = tuple[str, str]
"""Node, and CUDA_VISIBLE_DEVICES."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[None]:
    """Two, with four GPUs each as far as Ray knows: three places leave a hole of two."""
    cluster = Cluster()
    for _ in range(2):
        cluster.add_node(num_cpus=8, num_gpus=4, object_store_memory=100 << 20)
    ray.init(address=cluster.address)
    yield
    ray.shutdown()
    cluster.shutdown()


class Part:
    def see(self) -> Seen:
        return ray.get_runtime_context().get_node_id(), os.environ.get("CUDA_VISIBLE_DEVICES", "")


def rank(places: SharedPlaces, number: int) -> Any:
    options = {"num_cpus": 1, "num_gpus": 1, **places.options(number // WORKERS)}
    return ray.remote(Part).options(**options).remote()


def seen(actors: list[Any]) -> list[Seen]:
    return ray.get([actor.see.remote() for actor in actors], timeout=60)


async def test_ranks_of_a_place_are_on_one_node_and_come_back_to_the_same_gpus(nodes: None) -> None:
    places = SharedPlaces(PLACES, PLACE)
    await places.reserved(60)
    actors = [rank(places, number) for number in range(PLACES * WORKERS)]
    stand = seen(actors)
    assert len(set(stand)) == PLACES * WORKERS, "each has a GPU of its own"
    of_place = [stand[place * WORKERS :][:WORKERS] for place in range(PLACES)]
    assert all(len({node for node, _ in ranks}) == 1 for ranks in of_place)
    options = {"num_cpus": WORKERS, "num_gpus": 0}
    engines = [ray.remote(Part).options(**options, **places.options(place)).remote() for place in range(PLACES)]
    assert [node for node, _ in seen(engines)] == [ranks[0][0] for ranks in of_place]
    for actor in actors:
        ray.kill(actor)
    again = seen([rank(places, number) for number in range(PLACES * WORKERS)])
    for place, ranks in enumerate(of_place):
        assert set(again[place * WORKERS :][:WORKERS]) == set(ranks)


async def test_an_engine_that_no_node_has_room_for_is_refused_with_what_it_needs(nodes: None) -> None:
    with pytest.raises(ClusterTooSmall, match="no room for 1 places of 32 CPU, 16 GPU, each on one node, within 1 s"):
        await SharedPlaces(1, {"CPU": 32.0, "GPU": 16.0}).reserved(1)
