"""A cluster that cannot hold the recipe is refused with a table."""

from __future__ import annotations

import pytest

from funicular.cluster.session import ClusterTooSmall, Demand, _check


def test_a_cluster_without_enough_gpus_is_refused_with_what_is_missing() -> None:
    with pytest.raises(ClusterTooSmall, match=r"GPU +asked +8 +there +4 +missing +4"):
        _check(Demand(cpus=4, gpus=8), cpus=64, gpus=4)


def test_gpus_do_not_matter_to_a_run_on_cpu() -> None:
    _check(Demand(cpus=4, gpus=8), cpus=4, gpus=None)


def test_missing_cpus_are_named() -> None:
    with pytest.raises(ClusterTooSmall, match=r"CPU +asked +9 +there +4 +missing +5"):
        _check(Demand(cpus=9, gpus=0), cpus=4, gpus=None)
