"""Manifests as kustomize builds them, and as `funicular k8s render` writes them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from functools import cache
from importlib.metadata import requires
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from funicular.launch.k8s_options import FOLDER, RenderOptions
from funicular.launch.k8s_render import render
from funicular.launch.recipe import LoadedRecipe, load_recipe

RECIPE = "mbpp_qwen2.5_coder_7b"


@cache
def base_recipe() -> LoadedRecipe:
    return load_recipe([RECIPE], [])


@cache
def rendered(*overlays: str) -> tuple[dict[str, Any], ...]:
    """The base's recipe with these overlays."""
    return tuple(render(base_recipe(), RenderOptions(overlays=overlays)))


def kustomized(*parts: str) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: kustomizations are not built")
    command = ["kubectl", "kustomize", str(FOLDER.joinpath(*parts))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [item for item in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if item]


def with_required(packages: Iterable[str]) -> set[str]:
    """Names of these distributions and of all that they require, as those that are installed here say."""
    todo = [Requirement(line) for line in packages]
    found: dict[str, set[str]] = {}
    while todo:
        asked = todo.pop()
        name = canonicalize_name(asked.name)
        extras = {"", *asked.extras}
        if extras <= found.get(name, set()):
            continue
        found.setdefault(name, set()).update(extras)
        needed = [Requirement(line) for line in requires(name) or ()]
        todo += [one for one in needed if one.marker is None or any(one.marker.evaluate({"extra": e}) for e in extras)]
    return set(found)
