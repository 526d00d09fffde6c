"""Writes the two files of `k8s/` that repeat what the base's recipe says: `python -m tests.unit.k8s.regenerate`."""

from __future__ import annotations

from funicular.launch.k8s_options import FOLDER, RenderOptions
from funicular.launch.k8s_render import render, write
from funicular.launch.recipe import load_recipe

RECIPE = "mbpp_qwen2.5_coder_7b"
HEADING = "Written by `python -m tests.unit.k8s.regenerate`; a test compares it with `funicular k8s render`."


def main() -> None:
    """Write both; namespaces are kustomize's business."""
    loaded = load_recipe([RECIPE], [])
    for file, kind, overlays in (
        ("base/recipe.yaml", "ConfigMap", ()),
        ("overlays/raycluster/raycluster.yaml", "RayCluster", ("raycluster",)),
    ):
        chosen = [item for item in render(loaded, RenderOptions(overlays=overlays)) if item["kind"] == kind]
        for item in chosen:
            del item["metadata"]["namespace"]
        (FOLDER / file).write_text(write(chosen, HEADING), encoding="utf-8")


if __name__ == "__main__":
    main()
