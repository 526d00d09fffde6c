"""What KubeRay's operator refuses although the schema of its objects allows it, found before anything is applied.

KubeRay 1.7 with its default feature gates. Without these checks such an object is accepted by the API server, and
then sits there with an event that nobody reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from funicular.launch.k8s_manifest import Manifest

JOB_NAME = 47
"""Characters; the names of cluster and services are longer by what the operator adds."""
CLUSTER_NAME = 53
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_TOKEN_AUTH = (2, 52)
"""Ray's first version with token authentication."""
_K8S_TOKEN_AUTH = (2, 55)
"""Ray's first version that lets the API server judge tokens."""
_GATED = {
    "networkPolicy": "RayClusterNetworkPolicy",
    "tlsOptions": "RayClusterMTLS",
    "historyServerOptions": "RayClusterHistoryServer",
}
_OWN_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")


def refusals(objects: list[Manifest]) -> list[str]:
    """Everything that the operator, or Kueue, would refuse, each with its fix."""
    found: list[str] = []
    for item in objects:
        if item["kind"] == "RayJob":
            found += [*_name(item, JOB_NAME), *_job(item["spec"], item["metadata"])]
            if "rayClusterSpec" in item["spec"]:
                found += _cluster(item["spec"]["rayClusterSpec"], of_job=True)
        elif item["kind"] == "RayCluster":
            found += [*_name(item, CLUSTER_NAME), *_cluster(item["spec"], of_job=False)]
    return found


def _name(item: Manifest, limit: int) -> Iterator[str]:
    name = item["metadata"]["name"]
    if len(name) > limit:
        yield f"name={name}: {len(name)} characters, and a {item['kind']} may have {limit}; give a shorter name=..."
    if not _DNS_1035.fullmatch(name):
        yield (
            f"name={name}: expected a letter, then letters, digits and hyphens, none at the end, as Kubernetes takes "
            "names; give another name=..."
        )


def _job(spec: dict[str, Any], metadata: dict[str, Any]) -> Iterator[str]:
    mode = spec.get("submissionMode", "K8sJobMode")
    shuts_down, selector = spec.get("shutdownAfterJobFinishes", False), spec.get("clusterSelector")
    if mode not in ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"):
        yield f"submissionMode={mode}: expected K8sJobMode, HTTPMode, SidecarMode or InteractiveMode"
    if spec.get("suspend") and not shuts_down:
        yield "suspend: needs shutdownAfterJobFinishes: true"
    if spec.get("suspend") and selector:
        yield "suspend: not with clusterSelector; suspend needs a cluster of its own"
    if spec.get("ttlSecondsAfterFinished") and not shuts_down:
        yield "ttlSecondsAfterFinished: needs shutdownAfterJobFinishes: true"
    if spec.get("ttlSecondsAfterFinished", 0) < 0:
        yield f"ttlSecondsAfterFinished={spec['ttlSecondsAfterFinished']}: expected 0 or more"
    if spec.get("deletionStrategy", {}).get("deletionRules") and shuts_down:
        yield "deletionStrategy.deletionRules: not with shutdownAfterJobFinishes: true; remove one of them"
    if spec.get("backoffLimit", 0) < 0:
        yield f"backoffLimit={spec['backoffLimit']}: expected 0 or more"
    if spec.get("backoffLimit") and (selector or mode == "InteractiveMode"):
        yield "backoffLimit: not with clusterSelector or InteractiveMode; each attempt makes a new cluster"
    if not selector and "rayClusterSpec" not in spec:
        yield "rayClusterSpec: needed where there is no clusterSelector"
    if mode == "SidecarMode":
        for key in ("clusterSelector", "submitterPodTemplate", "submitterConfig"):
            if spec.get(key):
                yield f"{key}: not with SidecarMode; remove it, or use K8sJobMode"
        head = spec.get("rayClusterSpec", {}).get("headGroupSpec", {}).get("template", {}).get("spec", {})
        if (policy := head.get("restartPolicy", "Never")) != "Never":
            yield f"group head: restartPolicy={policy}: expected Never with SidecarMode; remove it, or use K8sJobMode"
    queue = metadata.get("labels", {}).get("kueue.x-k8s.io/queue-name")
    if queue and spec.get("rayClusterSpec", {}).get("enableInTreeAutoscaling"):
        yield "overlays kueue and autoscaled-sandbox: Kueue admits clusters of a fixed size only; leave one out"


def _cluster(spec: dict[str, Any], *, of_job: bool) -> Iterator[str]:
    for key, gate in _GATED.items():
        if key in spec:
            yield f"{key}: needs the operator's feature gate {gate}, which is off by default; remove it"
    if spec.get("gcsFaultToleranceOptions", {}).get("backend", "redis") != "redis":
        yield "gcsFaultToleranceOptions.backend: expected redis, the others are behind a feature gate"
    if spec.get("gcsFaultToleranceOptions") and of_job:
        yield "gcsFaultToleranceOptions: useless in a RayJob, which makes a new cluster for each attempt; remove it"
    yield from _auth(spec, of_job)
    head = {"groupName": "head", **spec["headGroupSpec"]}
    scales = spec.get("enableInTreeAutoscaling", False)
    for group in (head, *spec.get("workerGroupSpecs", ())):
        name, parameters = group["groupName"], group.get("rayStartParams", {})
        if "labels" in parameters:
            yield f"group {name}: rayStartParams.labels: not supported; use the group's `labels`"
        if group.get("resources") and any(key in parameters for key in _OWN_RESOURCES):
            yield f"group {name}: resources: not with {', '.join(_OWN_RESOURCES)} in rayStartParams; remove one"
        if scales and group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield f"group {name}: restartPolicy: expected Never with the autoscaler; remove it"
        if group is not head:
            yield from _replicas(group, scales)


def _replicas(group: dict[str, Any], scales: bool) -> Iterator[str]:
    low, high, now = (group.get(key) for key in ("minReplicas", "maxReplicas", "replicas"))
    if low is None or high is None:
        yield f"group {group['groupName']}: minReplicas and maxReplicas: both must be set"
    elif low > high or (now is not None and not low <= now <= high):
        yield f"group {group['groupName']}: expected minReplicas <= replicas <= maxReplicas, got {low}, {now}, {high}"
    if scales and group.get("suspend"):
        yield f"group {group['groupName']}: suspend: not with the autoscaler"


def _auth(spec: dict[str, Any], of_job: bool) -> Iterator[str]:
    auth = spec.get("authOptions", {})
    if auth.get("mode") == "token":
        yield from _older(spec, "authOptions.mode=token", _TOKEN_AUTH)
    if auth.get("enableK8sTokenAuth"):
        yield from _older(spec, "authOptions.enableK8sTokenAuth", _K8S_TOKEN_AUTH)
        if auth.get("mode") != "token":
            yield "authOptions.enableK8sTokenAuth: needs authOptions.mode: token"
        if auth.get("secretName"):
            yield "authOptions.enableK8sTokenAuth: not with authOptions.secretName; remove one of them"
        if of_job:
            yield "authOptions.enableK8sTokenAuth: not in a RayJob; remove it"


def _older(spec: dict[str, Any], key: str, first: tuple[int, int]) -> Iterator[str]:
    """Whether the cluster's Ray is older than the first version that has this."""
    version = re.match(r"(\d+)\.(\d+)", str(spec.get("rayVersion", "")))
    if version is None or tuple(map(int, version.groups())) < first:
        yield f"{key}: needs rayVersion {first[0]}.{first[1]}.0 or newer, got {spec.get('rayVersion', 'none')}"
