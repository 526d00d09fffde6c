"""Places for several actors each: what is reserved together stands on one node, and keeps its GPUs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from funicular.cluster.session import ClusterTooSmall


class SharedPlaces:
    """Equal places, reserved as one. An actor that dies is made again where it was.

    Args:
        resources: of each place, as Ray names them.
    """

    def __init__(self, count: int, resources: Mapping[str, float]) -> None:
        from ray.util.placement_group import placement_group

        self._count = count
        self._resources = dict(resources)
        self._group = placement_group([self._resources] * count, strategy="PACK")

    async def reserved(self, deadline_s: float) -> None:
        """Return when all places are there.

        Raises:
            ClusterTooSmall: they are not, after `deadline_s`.
        """
        if await asyncio.to_thread(self._group.wait, deadline_s):
            return
        place = ", ".join(f"{amount:g} {name}" for name, amount in self._resources.items())
        raise ClusterTooSmall(
            f"cluster.colocate: no room for {self._count} places of {place}, each on one node, within "
            f"{deadline_s:.0f} s (cluster.room_deadline_s). A generator of tensor_parallel_size N needs a node with N "
            "free GPUs and 2 N CPUs; lower generator.tensor_parallel_size, add nodes, or wait longer"
        )

    def options(self, place: int) -> dict[str, Any]:
        """Actor options that put it there."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=place)
        return {"scheduling_strategy": strategy}
