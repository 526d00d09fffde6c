"""`funicular k8s render`: a run's objects for `kubectl apply -f`, counted from the recipe and checked."""

from __future__ import annotations

import sys

import yaml

from funicular.cluster.roles import SANDBOX
from funicular.launch.k8s_manifest import Manifest, base_objects, kubernetes_name, with_images
from funicular.launch.k8s_options import LONG_LIVED, RenderOptions
from funicular.launch.k8s_overlays import apply_overlay, slots_of_pod
from funicular.launch.k8s_recipe import unreachable
from funicular.launch.k8s_rules import refusals
from funicular.launch.recipe import LoadedRecipe

WRONG_INPUT = 2


class CannotRender(ValueError):
    """Everything that would go wrong on the cluster, one problem a line."""


def render(loaded: LoadedRecipe, options: RenderOptions) -> list[Manifest]:
    """The objects of a run.

    Raises:
        CannotRender: nothing of this can work on the cluster.
    """
    problems = list(unreachable(loaded))
    if {"kueue", LONG_LIVED} <= set(options.overlays):
        problems.append(f"overlays kueue and {LONG_LIVED}: Kueue admits runs, not a cluster that outlives them")
    if problems:
        raise CannotRender("\n".join(problems))
    objects = base_objects(loaded, options)
    places = loaded.config.cluster.sandbox_places
    if complaint := _never_come(objects, places, options):
        raise CannotRender(complaint)
    # the long-lived cluster last: the others patch the RayJob that it replaces
    for name in sorted(dict.fromkeys(options.overlays), key=lambda name: name == LONG_LIVED):
        objects = apply_overlay(name, objects, kubernetes_name(loaded.config.name), options.namespace, places)
    with_images(objects, options)
    if problems := refusals(objects):
        raise CannotRender("\n".join(problems))
    return objects


def _never_come(objects: list[Manifest], places: int, options: RenderOptions) -> str | None:
    """Sandbox slots that the recipe asks for, and nobody brings."""
    (job,) = (item for item in objects if item["kind"] == "RayJob")
    groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    there = sum(group["replicas"] * slots_of_pod(group) for group in groups if group["groupName"] == SANDBOX)
    if places <= there or "autoscaled-sandbox" in options.overlays:
        return None
    return (
        f"cluster.sandbox_places={places}: the sandbox pods offer {there}, and without --overlay autoscaled-sandbox "
        f"nobody brings more; add the overlay, raise --sandbox-pods, or set cluster.sandbox_places={there}"
    )


def write(objects: list[Manifest], heading: str) -> str:
    """As YAML documents, every text that holds several lines as a block."""
    return f"# {heading}\n" + yaml.dump_all(objects, Dumper=_Blocks, sort_keys=False, allow_unicode=True, width=120)


def k8s_render(loaded: LoadedRecipe, options: RenderOptions) -> int:
    """Print or write the manifests; returns the exit status."""
    try:
        objects = render(loaded, options)
    except ValueError as error:
        print(f"funicular k8s render: {error}", file=sys.stderr)
        return WRONG_INPUT
    overlays = f", overlays {', '.join(options.overlays)}" if options.overlays else ""
    text = write(objects, f"funicular k8s render, from {', '.join(loaded.sources)}{overlays}")
    if options.output is None:
        print(text, end="")
        return 0
    try:
        options.output.write_text(text, encoding="utf-8")
    except OSError as error:
        print(
            f"funicular k8s render: --output={options.output}: {error.strerror}; expected a file in a folder that is "
            "there and may be written",
            file=sys.stderr,
        )
        return WRONG_INPUT
    print(f"{options.output}: kubectl apply -f {options.output}")
    return 0


class _Blocks(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        """Each object says what it is by itself."""
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Blocks.add_representer(str, _text)
