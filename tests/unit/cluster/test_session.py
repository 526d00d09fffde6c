"""A cluster that cannot hold the recipe is refused with a table."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray

from funicular.cluster.roles import role_resources, small_cpus
from funicular.cluster.session import ClusterTooSmall, Demand, _check, sandbox_cpus_by_node


def test_a_cluster_without_enough_gpus_is_refused_with_what_is_missing() -> None:
    with pytest.raises(ClusterTooSmall, match=r"GPU +asked +8 +there +4 +missing +4"):
        _check(Demand(cpus=4, gpus=8), cpus=64, gpus=4, offered={})


def test_gpus_do_not_matter_to_a_run_on_cpu() -> None:
    _check(Demand(cpus=4, gpus=8), cpus=4, gpus=None, offered={})


def test_missing_cpus_are_named() -> None:
    with pytest.raises(ClusterTooSmall, match=r"CPU +asked +9 +there +4 +missing +5"):
        _check(Demand(cpus=9, gpus=0), cpus=4, gpus=None, offered={})


def test_nodes_kept_for_a_role_must_hold_its_parts_and_other_roles_do_not_matter() -> None:
    demand = Demand(cpus=1, gpus=8, roles={"learner": 4, "generator": 4})
    _check(demand, cpus=8, gpus=8, offered={"learner": 4})
    with pytest.raises(ClusterTooSmall, match=r"learner +asked +4 +there +3 +missing +1"):
        _check(demand, cpus=8, gpus=8, offered={"learner": 3, "sandbox": 16})


def test_an_actor_asks_for_its_role_only_where_nodes_offer_it() -> None:
    assert role_resources("generator", 2, {"generator", "learner"}) == {"generator": 2.0}
    assert role_resources("generator", 2, frozenset()) == {}


def test_small_actors_keep_off_nodes_that_are_for_the_sandbox() -> None:
    assert small_cpus({"sandbox", "learner"}) > 0
    assert small_cpus({"learner"}) == 0


def test_sandbox_pools_go_to_the_nodes_kept_for_them_or_to_all_that_offer_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = {"NodeID": "gpus", "Alive": True, "Resources": {"CPU": 32.0, "GPU": 4.0}}
    head = {"NodeID": "head", "Alive": True, "Resources": {"memory": 1.0}}
    kept = {"NodeID": "kept", "Alive": True, "Resources": {"sandbox": 16.0}}
    dead = {"NodeID": "dead", "Alive": False, "Resources": {"sandbox": 16.0}}
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "head"))
    monkeypatch.setattr(ray, "nodes", lambda: [head, gpus, dead])
    assert sandbox_cpus_by_node() == {"gpus": 32}
    monkeypatch.setattr(ray, "nodes", lambda: [head, gpus, kept, dead])
    assert sandbox_cpus_by_node() == {"kept": 16}
