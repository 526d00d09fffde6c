"""A cluster that cannot hold the recipe is refused with a table."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from funicular.cluster.config import ClusterConfig
from funicular.cluster.roles import role_resources, small_cpus
from funicular.cluster.session import (
    ClusterTooSmall,
    Demand,
    Engines,
    _refuse_too_small,
    _wait_for_room,
    connect,
    sandbox_cpus_by_node,
    sandbox_nodes_come,
    seen_by_actors,
    worker_environment,
)


def node(**resources: float) -> dict[str, float]:
    return resources


def test_a_cluster_without_enough_gpus_is_refused_with_what_is_missing() -> None:
    nodes = [node(CPU=32, GPU=2), node(CPU=32, GPU=2)]
    with pytest.raises(ClusterTooSmall, match=r"GPU +asked +8 +there +4 +missing +4"):
        _refuse_too_small(Demand(cpus=4, gpus=8), nodes, use_gpu=True)


def test_gpus_do_not_matter_to_a_run_on_cpu() -> None:
    _refuse_too_small(Demand(cpus=4, gpus=8), [node(CPU=4)], use_gpu=False)


def test_missing_cpus_are_named() -> None:
    with pytest.raises(ClusterTooSmall, match=r"CPU +asked +9 +there +4 +missing +5"):
        _refuse_too_small(Demand(cpus=9, gpus=0), [node(CPU=4)], use_gpu=False)


def test_nodes_kept_for_a_role_must_hold_its_parts_and_other_roles_do_not_matter() -> None:
    demand = Demand(cpus=1, gpus=8, roles={"learner": 4, "generator": 4})
    _refuse_too_small(demand, [node(CPU=8, GPU=8, learner=4)], use_gpu=True)
    with pytest.raises(ClusterTooSmall, match=r"learner +asked +4 +there +3 +missing +1"):
        _refuse_too_small(demand, [node(CPU=8, GPU=8, learner=3), node(sandbox=16)], use_gpu=True)


def test_an_engine_that_fits_on_no_single_node_is_refused_though_all_nodes_together_would_do() -> None:
    demand = Demand(cpus=16, gpus=16, engines=(Engines(role="generator", count=2, workers=8),))
    _refuse_too_small(demand, [node(CPU=8, GPU=8), node(CPU=8, GPU=8)], use_gpu=True)
    row = r"generator engines of 8 on one node each +asked +2 +there +0 +missing +2"
    with pytest.raises(ClusterTooSmall, match=row):
        _refuse_too_small(demand, [node(CPU=8, GPU=4)] * 4, use_gpu=True)


def test_engines_stand_only_where_their_role_is_offered() -> None:
    demand = Demand(cpus=4, gpus=0, roles={"generator": 4}, engines=(Engines(role="generator", count=1, workers=4),))
    _refuse_too_small(demand, [node(CPU=8), node(CPU=4, generator=4)], use_gpu=False)
    with pytest.raises(ClusterTooSmall, match=r"on one node each +asked +1 +there +0"):
        _refuse_too_small(demand, [node(CPU=8), node(CPU=4, generator=2), node(generator=2)], use_gpu=False)


def test_a_run_waits_for_what_another_job_holds_and_then_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([{"CPU": 1.0}, {"CPU": 1.0, "learner": 2.0}, {"CPU": 4.0, "learner": 2.0}])
    monkeypatch.setattr(ray, "available_resources", lambda: next(free))
    monkeypatch.setattr("funicular.cluster.session.time.sleep", lambda _: None)
    _wait_for_room(Demand(cpus=3, gpus=0, roles={"learner": 2}), frozenset({"learner"}), 60, use_gpu=False)
    assert next(free, None) is None


def test_what_stays_taken_is_refused_with_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 2.0})
    with pytest.raises(ClusterTooSmall, match=r"CPU +asked +3 +free +2 +missing +1"):
        _wait_for_room(Demand(cpus=3, gpus=0), frozenset(), 0.0, use_gpu=False)


@pytest.mark.parametrize(("shipped", "seen"), [({"working_dir": "gcs://x.zip"}, "rewards"), ({}, None)])
def test_a_folder_that_came_with_the_job_is_named_from_the_actors_own_copy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shipped: dict[str, str], seen: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(runtime_env=shipped))
    folder = tmp_path / "rewards"
    assert seen_by_actors(folder) == (Path(seen) if seen else folder)
    assert seen_by_actors(Path("/elsewhere")) == Path("/elsewhere")


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


@pytest.mark.parametrize(
    ("places", "address", "environment", "come"),
    [
        (0, "10.0.0.1:6379", None, False),
        (8, "10.0.0.1:6379", None, True),
        (8, "local", "10.0.0.1:6379", False),
        (8, "auto", None, False),
        (8, "auto", "10.0.0.1:6379", True),
    ],
)
def test_nodes_for_the_sandbox_are_asked_for_where_a_cluster_can_bring_them(
    monkeypatch: pytest.MonkeyPatch, places: int, address: str, environment: str | None, come: bool
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if environment:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    assert sandbox_nodes_come(ClusterConfig(sandbox_places=places, address=address)) is come


def test_the_hub_s_token_stays_with_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HOME"):
        monkeypatch.setenv(name, f"value of {name}")
    environment = worker_environment()
    assert environment["HF_HOME"] == "value of HF_HOME"
    assert [name for name in environment if "TOKEN" in name] == ["TOKENIZERS_PARALLELISM"]


@pytest.mark.parametrize(("mode", "fix"), [(None, "RAY_AUTH_MODE=token"), ("token", "RAY_AUTH_TOKEN")])
def test_a_cluster_that_does_not_answer_may_want_a_token(
    monkeypatch: pytest.MonkeyPatch, mode: str | None, fix: str
) -> None:
    def refused(**given: object) -> None:
        raise ConnectionError("Ray says nothing of the token here")

    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setattr(ray, "init", refused)
    with pytest.raises(ValueError, match=rf"cluster\.address=h:1: no Ray cluster answers at h:1; .*{fix}"):
        connect(ClusterConfig(address="h:1"), Demand(cpus=1, gpus=0))


def test_a_token_that_is_not_here_is_an_error_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**given: object) -> None:
        raise ray.exceptions.AuthenticationError("no token was found\nmore")

    monkeypatch.setattr(ray, "init", refused)
    with pytest.raises(ValueError, match=r"cluster\.address=h:1: no token was found"):
        connect(ClusterConfig(address="h:1"), Demand(cpus=1, gpus=0))
