"""Manifests as kustomize builds them, and as `funicular k8s render` writes them."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from typing import Any

import pytest
import yaml

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
