"""A Ray of the tests' own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """Workers find `tests.*` through PYTHONPATH, which Ray does not pass on by itself."""
    root = str(Path(__file__).parents[2])
    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=8,
        object_store_memory=200 << 20,
        runtime_env={"env_vars": {"PYTHONPATH": root}},
    )
    yield
    ray.shutdown()
