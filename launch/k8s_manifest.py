"""The objects of a run: those of `k8s/base`, with what the recipe says in its places."""

from __future__ import annotations

import copy
import json
import re
import shlex
from typing import Any

import yaml

from funicular.cluster.roles import SANDBOX
from funicular.launch.k8s_groups import Group, groups
from funicular.launch.k8s_options import FOLDER, POD_DATA, RenderOptions
from funicular.launch.k8s_recipe import MOUNT, config_map_data
from funicular.launch.recipe import LoadedRecipe

_BASE_NAME = "mbpp-qwen2-5-coder-7b"
"""What `k8s/` calls the run: in names, in labels, and before what its objects add to it."""
Manifest = dict[str, Any]


def read_objects(*parts: str) -> list[Manifest]:
    """The objects in one file of `k8s/`, none of them shared with another by an anchor."""
    with (FOLDER.joinpath(*parts)).open(encoding="utf-8") as file:
        return copy.deepcopy([json.loads(json.dumps(item)) for item in yaml.safe_load_all(file) if item])


def base_objects(loaded: LoadedRecipe, options: RenderOptions) -> list[Manifest]:
    """Namespace, volume, network policy, recipe and RayJob.

    Raises:
        ValueError: the recipe does not fit into pods of this size.
    """
    (kustomization,) = read_objects("base", "kustomization.yaml")
    objects = [item for name in kustomization["resources"] for item in read_objects("base", name)]
    files = config_map_data(loaded)
    for item in objects:
        if item["kind"] == "ConfigMap":
            item["data"] = files
        elif item["kind"] == "RayJob":
            item["spec"]["entrypoint"] = entrypoint(loaded)
            _fill_cluster(item["spec"]["rayClusterSpec"], groups(loaded.config, options), sorted(files))
    name_run(objects, kubernetes_name(loaded.config.name))
    in_namespace(objects, options.namespace)
    return objects


def kubernetes_name(name: str) -> str:
    """A run's name as Kubernetes takes names: `Run_1.5b` is `run-1-5b`."""
    return re.sub(r"[^a-z0-9-]", "-", name.lower()).strip("-")


def entrypoint(loaded: LoadedRecipe) -> str:
    """The command of the RayJob: the recipe in the pod, its run folder on the volume that pods share."""
    words = ["funicular", "train", "-c", f"{MOUNT}/recipe.yaml"]
    if loaded.config.run_dir is None:
        words.append(f"run_dir={POD_DATA}/runs/{loaded.config.name}")
    if "resume" not in loaded.origins:
        words.append("resume=auto")
    return shlex.join(words)


def name_run(objects: list[Manifest], name: str) -> None:
    """Give the run's name to objects, references, labels and selectors: network policies keep runs apart by it."""
    for item in objects:
        item.update(_renamed({key: value for key, value in item.items() if key != "data"}, name))


def in_namespace(objects: list[Manifest], namespace: str) -> None:
    """What kustomize's `namespace:` does."""
    for item in objects:
        if item["kind"] == "Namespace":
            item["metadata"]["name"] = namespace
        else:
            item["metadata"]["namespace"] = namespace


def with_images(objects: list[Manifest], options: RenderOptions) -> None:
    """Put the images asked for in the place of the base's."""
    chosen = {"funicular-gpu": options.image, "funicular-sandbox": options.sandbox_image}
    for container in containers(objects):
        if image := chosen.get(container["image"].partition(":")[0]):
            container["image"] = image


def containers(node: Any) -> list[Manifest]:
    """Every container that stands anywhere in these objects."""
    if isinstance(node, list):
        return [found for item in node for found in containers(item)]
    if not isinstance(node, dict):
        return []
    own = [*node.get("containers", []), *node.get("initContainers", [])]
    return own + [found for key, value in node.items() if "ontainers" not in key for found in containers(value)]


def _fill_cluster(cluster: Manifest, wanted: list[Group], files: list[str]) -> None:
    templates = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    cluster["workerGroupSpecs"] = [
        # a teacher is an engine, like a generator
        _worker_group(templates.get(group.role, templates["generator"]), group)
        for group in wanted
    ]
    for container in containers(cluster):
        _mount_each(container["volumeMounts"], files)


def _mount_each(mounts: list[Manifest], files: list[str]) -> None:
    """In the place of the recipe's mount one for each file of the ConfigMap, as k8s/base says why."""
    for recipe in [mount for mount in mounts if mount["name"] == "recipe"]:
        at = mounts.index(recipe)
        mounts[at : at + 1] = [{**recipe, "mountPath": f"{MOUNT}/{file}", "subPath": file} for file in files]


def _worker_group(template: Manifest, group: Group) -> Manifest:
    filled = copy.deepcopy(template)
    filled.update(groupName=group.role, replicas=group.pods, minReplicas=group.pods, maxReplicas=group.pods)
    filled["rayStartParams"]["resources"] = json.dumps(json.dumps({group.role: group.offers}))
    pod = filled["template"]["spec"]
    for amounts in pod["containers"][0]["resources"].values():
        amounts.update({"cpu": str(group.cpus), "memory": f"{group.memory_gib}Gi"})
        amounts.pop("nvidia.com/gpu", None)
        if group.gpus:
            amounts["nvidia.com/gpu"] = str(group.gpus)
    if group.role != SANDBOX:
        shm = next(volume for volume in pod["volumes"] if volume["name"] == "shm")
        shm_gib = group.memory_gib // 4
        shm["emptyDir"]["sizeLimit"] = f"{shm_gib}Gi"
        filled["rayStartParams"]["object-store-memory"] = str(shm_gib * 2**30 * 95 // 100)  # as k8s/base has it
    if not group.gpus:
        pod.pop("tolerations", None)
    return filled


def _renamed(node: Any, name: str) -> Any:
    if isinstance(node, list):
        return [_renamed(item, name) for item in node]
    if isinstance(node, dict):
        files = ("subPath",)  # a reward file's name may begin like the base's
        return {key: value if key in files else _renamed(value, name) for key, value in node.items()}
    if isinstance(node, str) and (node == _BASE_NAME or node.startswith(f"{_BASE_NAME}-")):
        return name + node.removeprefix(_BASE_NAME)
    return node
