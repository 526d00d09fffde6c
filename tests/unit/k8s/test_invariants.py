"""What must hold for every pod of every overlay, and for the counts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from funicular.launch.build import demand
from funicular.launch.k8s_manifest import containers
from funicular.launch.k8s_options import RenderOptions, overlay_names
from funicular.launch.k8s_render import render
from tests.unit.k8s.conftest import base_recipe, rendered

VARIANTS = [(), *((name,) for name in overlay_names())]
every_overlay = pytest.mark.parametrize("overlays", VARIANTS, ids=lambda overlays: " ".join(overlays) or "base")


def pods(node: Any) -> Iterator[dict[str, Any]]:
    """Every pod spec that stands anywhere in these objects."""
    if isinstance(node, list | tuple):
        for item in node:
            yield from pods(item)
    elif isinstance(node, dict):
        if "containers" in node:
            yield node
        for value in node.values():
            yield from pods(value)


def cluster(overlays: tuple[str, ...]) -> dict[str, Any]:
    (item,) = (item for item in rendered(*overlays) if item["apiVersion"] == "ray.io/v1")
    return item["spec"] if item["kind"] == "RayCluster" else item["spec"]["rayClusterSpec"]


def group(overlays: tuple[str, ...], name: str) -> dict[str, Any]:
    (found,) = (group for group in cluster(overlays)["workerGroupSpecs"] if group["groupName"] == name)
    return found


def beyond_restricted(pod: dict[str, Any]) -> list[str]:
    """What the standard `restricted` would refuse."""
    found = []
    security = pod.get("securityContext", {})
    if security.get("runAsNonRoot") is not True or security.get("runAsUser", 0) == 0:
        found.append("root")
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        found.append("seccomp")
    if any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        found.append("host namespaces")
    if any(set(volume) - {"name", "emptyDir", "configMap", "persistentVolumeClaim"} for volume in pod["volumes"]):
        found.append("volumes")
    for container in containers(pod):
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False:
            found.append(f"{container['name']}: privilege escalation")
        if own.get("capabilities") != {"drop": ["ALL"]}:
            found.append(f"{container['name']}: capabilities")
    return found


@every_overlay
def test_every_container_has_limits_and_an_image_with_a_tag(overlays: tuple[str, ...]) -> None:
    found = containers(list(rendered(*overlays)))
    assert len(found) >= 4
    for container in found:
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["image"].partition(":")[2] not in ("", "latest")


@every_overlay
def test_every_pod_is_within_the_standard_restricted_but_for_rdma(overlays: tuple[str, ...]) -> None:
    found = [problem for pod in pods(rendered(*overlays)) for problem in beyond_restricted({"volumes": [], **pod})]
    (namespace,) = (item for item in rendered(*overlays) if item["kind"] == "Namespace")
    level = namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    if overlays == ("rdma",):
        assert (level, found) == ("privileged", ["ray-worker: capabilities"] * 2)  # IPC_LOCK pins memory
    else:
        assert (level, found) == ("restricted", [])


@every_overlay
def test_only_the_autoscalers_head_has_a_service_accounts_token(overlays: tuple[str, ...]) -> None:
    head = cluster(overlays)["headGroupSpec"]["template"]["spec"]
    with_token = [pod for pod in pods(rendered(*overlays)) if pod.get("automountServiceAccountToken") is not False]
    assert with_token == ([head] if overlays == ("autoscaled-sandbox",) else [])


@every_overlay
def test_sandbox_pods_have_no_gpu_no_secret_no_shared_volume_and_a_read_only_root(overlays: tuple[str, ...]) -> None:
    pod = group(overlays, "sandbox")["template"]["spec"]
    (container,) = pod["containers"]
    assert "gpu" not in json.dumps(container["resources"])
    assert "tolerations" not in pod
    assert "envFrom" not in container
    assert all("valueFrom" not in variable for variable in container["env"])
    assert all(set(volume) == {"name", "emptyDir"} for volume in pod["volumes"])
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["resources"]["limits"]["ephemeral-storage"]


@every_overlay
def test_sandbox_pods_reach_pods_of_their_run_and_dns_only(overlays: tuple[str, ...]) -> None:
    (policy,) = (
        item["spec"]
        for item in rendered(*overlays)
        if item["kind"] == "NetworkPolicy" and "ray.io/group" in item["spec"]["podSelector"].get("matchLabels", {})
    )
    run = group(overlays, "sandbox")["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"] == {**run, "ray.io/group": "sandbox"}
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert policy["ingress"] == [{"from": [{"podSelector": {"matchLabels": run}}]}]
    to_run, to_dns = policy["egress"]
    assert to_run == {"to": [{"podSelector": {"matchLabels": run}}]}
    assert [port["port"] for port in to_dns["ports"]] == [53, 53]
    assert cluster(overlays)["headGroupSpec"]["template"]["metadata"]["labels"] == run


def test_only_the_runs_pods_reach_mlflow_and_only_mlflow_its_database() -> None:
    policies = {
        item["metadata"]["name"]: item["spec"] for item in rendered("mlflow") if item["kind"] == "NetworkPolicy"
    }
    mlflow, postgres = policies["mbpp-qwen2-5-coder-7b-mlflow"], policies["funicular-postgres"]
    labels = {
        item["metadata"]["name"]: item["spec"]["template"]["metadata"]["labels"]
        for item in rendered("mlflow")
        if item["kind"] in ("Deployment", "StatefulSet")
    }
    head = cluster(("mlflow",))["headGroupSpec"]["template"]
    assert {"name": "MLFLOW_TRACKING_URI", "value": "http://funicular-mlflow:5000"} in head["spec"]["containers"][0][
        "env"
    ]
    assert mlflow["podSelector"]["matchLabels"] == labels["funicular-mlflow"]
    assert mlflow["policyTypes"] == postgres["policyTypes"] == ["Ingress", "Egress"]
    no_sandbox = {"key": "ray.io/group", "operator": "NotIn", "values": ["sandbox"]}
    assert mlflow["ingress"] == [
        {
            "from": [{"podSelector": {"matchLabels": head["metadata"]["labels"], "matchExpressions": [no_sandbox]}}],
            "ports": [{"port": 5000, "protocol": "TCP"}],
        }
    ]
    to_database, to_dns = mlflow["egress"]
    assert to_database["to"] == [{"podSelector": {"matchLabels": labels["funicular-postgres"]}}]
    assert [port["port"] for port in (*to_database["ports"], *to_dns["ports"])] == [5432, 53, 53]
    assert postgres["ingress"][0]["from"] == [{"podSelector": {"matchLabels": labels["funicular-mlflow"]}}]


@every_overlay
def test_every_pod_that_is_not_of_ray_has_a_network_policy(overlays: tuple[str, ...]) -> None:
    closed = [
        item["spec"]["podSelector"].get("matchLabels", {})
        for item in rendered(*overlays)
        if item["kind"] == "NetworkPolicy"
    ]
    for item in rendered(*overlays):
        if item["kind"] in ("Deployment", "StatefulSet"):
            assert item["spec"]["template"]["metadata"]["labels"] in closed, item["metadata"]["name"]


@every_overlay
def test_pods_offer_what_the_recipe_asks_for_and_no_gpu_more(overlays: tuple[str, ...]) -> None:
    asked = demand(base_recipe().config)
    gpus = 0
    for found in cluster(overlays)["workerGroupSpecs"]:
        (offer,) = json.loads(json.loads(found["rayStartParams"]["resources"])).items()
        assert offer[0] == found["groupName"]
        assert found["minReplicas"] == found["replicas"]
        limits = found["template"]["spec"]["containers"][0]["resources"]["limits"]
        gpus += found["replicas"] * int(limits.get("nvidia.com/gpu", 0))
        if offer[0] != "sandbox":
            assert found["replicas"] * offer[1] == asked.roles[offer[0]]
            assert found["maxReplicas"] == found["replicas"]
    assert gpus == asked.gpus


@every_overlay
def test_ray_pods_have_shared_memory_and_time_to_save(overlays: tuple[str, ...]) -> None:
    for pod in pods(cluster(overlays)):
        (container,) = pod["containers"]
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        assert next(volume for volume in pod["volumes"] if volume["name"] == "shm")["emptyDir"]["medium"] == "Memory"
        if any(mount["mountPath"] == "/data" for mount in container["volumeMounts"]):
            assert pod["terminationGracePeriodSeconds"] >= 600
            assert container["lifecycle"]["preStop"]


@pytest.mark.parametrize("gib_per_gpu", [16, 64])
def test_objects_of_ray_fit_into_shared_memory_and_not_onto_a_disk(gib_per_gpu: int) -> None:
    objects = render(base_recipe(), RenderOptions(memory_gib_per_gpu=gib_per_gpu))
    (spec,) = (item["spec"]["rayClusterSpec"] for item in objects if item["kind"] == "RayJob")
    for found in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        volumes = found["template"]["spec"]["volumes"]
        limit = next(volume for volume in volumes if volume["name"] == "shm")["emptyDir"]["sizeLimit"]
        room = int(limit.removesuffix("Gi")) * 2**30
        assert 0.9 * room < int(found["rayStartParams"]["object-store-memory"]) <= 0.95 * room


def test_a_preempted_run_is_started_again_and_resumes() -> None:
    (job,) = (item["spec"] for item in rendered() if item["kind"] == "RayJob")
    assert job["backoffLimit"] > 0
    assert job["entrypoint"].endswith("run_dir=/data/runs/mbpp_qwen2.5_coder_7b resume=auto")
    grace = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert int(yaml.safe_load(job["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) == grace


def test_the_head_lets_the_driver_save_before_it_ends(tmp_path: Path) -> None:
    if shutil.which("pkill") is None:
        pytest.skip("pkill is not installed")
    head = cluster(())["headGroupSpec"]["template"]["spec"]["containers"][0]
    name = f"z{uuid.uuid4().hex}"  # never the word itself: runs of others may be under way on this machine
    shell, flag, script = head["lifecycle"]["preStop"]["exec"]["command"]
    script = script.replace("[f]unicular", f"[z]{name[1:]}")
    assert "unicular" not in script
    program = tmp_path / "bin" / name
    program.parent.mkdir()
    program.write_text(
        "import pathlib, signal, time\n"
        f"saved, ready = (pathlib.Path({str(tmp_path)!r}) / name for name in ('saved', 'ready'))\n"
        "def save(*_):\n    time.sleep(0.5)\n    saved.touch()\n    raise SystemExit(143)\n"
        "signal.signal(signal.SIGTERM, save)\nready.touch()\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, str(program), "train"]) as driver:
        try:
            subprocess.run(
                ["/bin/sh", "-c", f"until test -e {tmp_path}/ready; do sleep 0.1; done"], timeout=60, check=True
            )
            subprocess.run([shell, flag, script], timeout=60, check=True)
            assert (tmp_path / "saved").exists()
            assert driver.wait(10) == 143
        finally:
            driver.kill()
