"""Applies what stands in `k8s/components`, as `kubectl kustomize` does: resources, and JSON patches (RFC 6902).

Only what those files use: `add`, `replace`, `remove`, and `test`, which guards a position in a list.
"""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import yaml

from funicular.cluster.roles import SANDBOX
from funicular.launch.k8s_manifest import Manifest, in_namespace, name_run, read_objects
from funicular.launch.k8s_options import LONG_LIVED

_GROUPS = "/spec/rayClusterSpec/workerGroupSpecs"


def apply_overlay(
    name: str, objects: list[Manifest], run: str, namespace: str, sandbox_places: int = 0
) -> list[Manifest]:
    """The objects with one overlay applied.

    Args:
        run: its name, as Kubernetes takes it.
        sandbox_places: what the run will ask Ray's autoscaler for.

    Raises:
        ValueError: the overlay changes something that this recipe has not.
    """
    if name == LONG_LIVED:
        return _long_lived(objects, namespace)
    (component,) = read_objects("components", name, "kustomization.yaml")
    added = [item for file in component.get("resources", ()) for item in read_objects("components", name, file)]
    name_run(added, run)
    in_namespace(added, namespace)
    changed = copy.deepcopy(objects)
    for patch in component.get("patches", ()):
        operations = yaml.safe_load(patch["patch"])
        for item in changed:
            if item["kind"] == patch["target"]["kind"]:
                for operation in _where_groups_stand(operations, item):
                    _patch(item, operation, name)
                _make_room(item, sandbox_places)
    return changed + added


def _make_room(item: Manifest, sandbox_places: int) -> None:
    """No overlay's upper limit is below the pods that the recipe or an option asks for.

    Ray's autoscaler brings nothing at all for a request that it cannot meet as a whole.
    """
    cluster = item.get("spec", {}).get("rayClusterSpec", {})
    for group in cluster.get("workerGroupSpecs", ()):
        pods = group["replicas"]
        if group["groupName"] == SANDBOX and cluster.get("enableInTreeAutoscaling"):
            pods = max(pods, math.ceil(sandbox_places / slots_of_pod(group)))
        group["maxReplicas"] = max(group["maxReplicas"], pods)


def slots_of_pod(group: Manifest) -> int:
    """What a pod of the sandbox's group offers Ray."""
    return int(json.loads(json.loads(group["rayStartParams"]["resources"]))[SANDBOX])


def _where_groups_stand(operations: list[Manifest], item: Manifest) -> list[Manifest]:
    """The operations with each worker group where this object has it: an overlay has its place in `k8s/base`.

    A group is known by the `test` of its name. One that is nowhere stays where it was, where that test fails.
    """
    groups = item.get("spec", {}).get("rayClusterSpec", {}).get("workerGroupSpecs", ())
    places = {group["groupName"]: f"{_GROUPS}/{index}" for index, group in enumerate(groups)}
    moved = {
        operation["path"].removesuffix("/groupName"): places[operation["value"]]
        for operation in operations
        if operation["op"] == "test" and operation["path"].startswith(_GROUPS) and operation["value"] in places
    }
    return [operation | {"path": _moved(operation["path"], moved)} for operation in operations]


def _moved(path: str, moved: dict[str, str]) -> str:
    for before, now in moved.items():
        if path.startswith(f"{before}/"):
            return now + path.removeprefix(before)
    return path


def _patch(item: Manifest, operation: Manifest, overlay: str) -> None:
    *way, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
    try:
        parent: Any = item
        for part in way:
            parent = parent[int(part) if isinstance(parent, list) else part]
        _do(parent, last, operation)
    except (KeyError, IndexError) as error:
        raise ValueError(
            f"--overlay {overlay}: {item['kind']} {item['metadata']['name']} has no {operation['path']} with "
            f"{operation.get('value', 'anything')}; leave the overlay out, or give the recipe what it is for"
        ) from error


def _do(parent: Any, last: str, operation: Manifest) -> None:
    """One operation. A `test` that fails is a KeyError: what the overlay is for stands at another place, or nowhere."""
    verb, value = operation["op"], copy.deepcopy(operation.get("value"))
    if verb == "add" and isinstance(parent, list):
        parent.insert(len(parent) if last == "-" else int(last), value)
        return
    key: Any = int(last) if isinstance(parent, list) else last
    if verb == "add":
        parent[key] = value
        return
    there = parent[key]
    if verb == "remove":
        del parent[key]
    elif verb == "replace":
        parent[key] = value
    elif verb == "test" and there != value:
        raise KeyError(last)
    elif verb != "test":
        raise ValueError(f"overlays use add, replace, remove and test, not {verb}")


def _long_lived(objects: list[Manifest], namespace: str) -> list[Manifest]:
    """A RayCluster that outlives jobs, with the state of its GCS in Redis, in the place of the RayJob."""
    added = read_objects("overlays", LONG_LIVED, "redis.yaml")
    in_namespace(added, namespace)
    found = [item for item in copy.deepcopy(objects) if item["kind"] != "RayJob"]
    for job in objects:
        if job["kind"] == "RayJob":
            spec = copy.deepcopy(job["spec"]["rayClusterSpec"])
            spec["gcsFaultToleranceOptions"] = {
                "redisAddress": "funicular-redis:6379",
                "redisPassword": {"valueFrom": {"secretKeyRef": {"name": "funicular-redis", "key": "password"}}},
            }
            found.append(
                {"apiVersion": job["apiVersion"], "kind": "RayCluster", "metadata": job["metadata"], "spec": spec}
            )
    return found + added
