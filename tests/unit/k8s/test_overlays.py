"""The folders that users apply with kustomize hold what `funicular k8s render` writes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from funicular.launch.k8s_options import FOLDER, RenderOptions, overlay_names
from funicular.launch.k8s_render import CannotRender, render
from funicular.launch.recipe import load_recipe
from tests.unit.k8s.conftest import RECIPE, base_recipe, kustomized, rendered


def by_name(objects: Any) -> dict[str, Any]:
    return {f"{item['kind']} {item['metadata']['name']}": json.loads(json.dumps(item)) for item in objects}


def test_the_base_is_what_render_writes_for_its_recipe() -> None:
    assert by_name(kustomized("base")) == by_name(rendered())


@pytest.mark.parametrize("overlay", overlay_names())
def test_an_overlay_built_by_kustomize_is_what_render_writes(overlay: str) -> None:
    built = by_name(kustomized("overlays", overlay))
    assert built == by_name(rendered(overlay))
    assert built != by_name(rendered())


def test_every_overlay_has_its_component_and_no_component_is_without() -> None:
    components = {path.name for path in (FOLDER / "components").iterdir()}
    assert components == set(overlay_names()) - {"raycluster"}


def test_overlays_combine_in_any_order() -> None:
    both = rendered("mlflow", "gvisor")
    assert by_name(both) == by_name(rendered("gvisor", "mlflow"))
    (job,) = (item for item in both if item["kind"] == "RayJob")
    assert job["spec"]["rayClusterSpec"]["workerGroupSpecs"][2]["template"]["spec"]["runtimeClassName"] == "gvisor"
    (cluster,) = (item for item in rendered("raycluster", "gvisor") if item["kind"] == "RayCluster")
    assert cluster["spec"]["workerGroupSpecs"][2]["template"]["spec"]["runtimeClassName"] == "gvisor"


def test_an_overlay_for_what_the_recipe_has_not_is_refused() -> None:
    loaded = load_recipe(["gsm8k_qwen2.5_7b_8xh100"], [])
    with pytest.raises(ValueError, match=r"--overlay gvisor: RayJob .* has no .*groupName with sandbox"):
        render(loaded, RenderOptions(overlays=("gvisor",)))


def test_overlays_find_the_sandbox_where_no_generator_pods_are() -> None:
    turns = ["cluster.colocate=true", "max_staleness=0", "learner.ranks=2", "generator.count=2"]
    loaded = load_recipe([RECIPE], [*turns, "generator.tensor_parallel_size=1"])
    objects = render(loaded, RenderOptions(overlays=("gvisor", "autoscaled-sandbox")))
    (job,) = (item for item in objects if item["kind"] == "RayJob")
    groups = {group["groupName"]: group for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    assert set(groups) == {"learner", "sandbox"}
    assert groups["sandbox"]["template"]["spec"]["runtimeClassName"] == "gvisor"
    assert (groups["sandbox"]["maxReplicas"], groups["learner"]["maxReplicas"]) == (16, groups["learner"]["replicas"])
    assert "runtimeClassName" not in groups["learner"]["template"]["spec"]
    with pytest.raises(ValueError, match=r"--overlay rdma: .* with generator"):
        render(loaded, RenderOptions(overlays=("rdma",)))


def test_what_overlays_bring_has_the_runs_name_and_leaves_room_for_other_runs() -> None:
    named = []
    for run in ("first", "second"):
        objects = render(load_recipe([RECIPE], [f"name={run}"]), RenderOptions(overlays=("mlflow",)))
        assert "mbpp-qwen2" not in json.dumps(objects)
        policies = {item["metadata"]["name"]: item["spec"] for item in objects if item["kind"] == "NetworkPolicy"}
        (source,) = policies[f"{run}-mlflow"]["ingress"][0]["from"]
        assert source["podSelector"]["matchLabels"] == {"app.kubernetes.io/instance": run}
        named.append(set(policies))
    assert named[0] & named[1] == {"funicular-postgres"}  # what a second run applies again is the same for both


@pytest.mark.parametrize(("pods", "most"), [(2, 16), (16, 16), (20, 20)])
def test_the_autoscaler_may_keep_all_pods_that_were_asked_for(pods: int, most: int) -> None:
    objects = render(base_recipe(), RenderOptions(overlays=("autoscaled-sandbox",), sandbox_pods=pods))
    (job,) = (item for item in objects if item["kind"] == "RayJob")
    sandbox = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][2]
    assert [sandbox[key] for key in ("minReplicas", "replicas", "maxReplicas")] == [pods, pods, most]


@pytest.mark.parametrize(("places", "most"), [(0, 16), (256, 16), (257, 17), (1000, 63)])
def test_the_autoscaler_may_bring_all_that_the_run_will_ask_for_or_it_would_bring_nothing(
    places: int, most: int
) -> None:
    asks = load_recipe([RECIPE], [f"cluster.sandbox_places={places}"])
    for overlays in (("autoscaled-sandbox",), ("raycluster", "autoscaled-sandbox")):
        objects = render(asks, RenderOptions(overlays=overlays))
        (cluster,) = (item["spec"] for item in objects if item["kind"] in ("RayJob", "RayCluster"))
        sandbox = cluster.get("rayClusterSpec", cluster)["workerGroupSpecs"][2]
        assert [sandbox[key] for key in ("minReplicas", "replicas", "maxReplicas")] == [2, 2, most]


def test_sandbox_slots_that_nobody_brings_are_refused() -> None:
    asks = load_recipe([RECIPE], ["cluster.sandbox_places=33"])
    with pytest.raises(CannotRender, match=r"sandbox_places=33: the sandbox pods offer 32, and without --overlay auto"):
        render(asks, RenderOptions())
    assert render(asks, RenderOptions(sandbox_pods=3))


@pytest.mark.parametrize("pair", [("kueue", "raycluster"), ("kueue", "autoscaled-sandbox")])
def test_overlays_that_exclude_each_other_are_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(CannotRender, match=r"overlays kueue and .*: Kueue admits"):
        render(base_recipe(), RenderOptions(overlays=pair))
