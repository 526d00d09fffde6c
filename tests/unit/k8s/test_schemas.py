"""Every object passes the schema of its kind strictly: an unknown field is an error."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from funicular.launch.k8s_options import overlay_names
from tests.unit.k8s.conftest import rendered

CRDS = next((path for up in Path(__file__).parents if (path := up / "shared" / "crds").is_dir()), None)
KUBERNETES = "1.34"
RAY = {"RayJob": "ray.io_rayjobs.yaml", "RayCluster": "ray.io_rayclusters.yaml"}
VARIANTS = [(), *((name,) for name in overlay_names())]


def strict(schema: Any) -> Any:
    """The schema of a CRD, refusing what the API server would silently prune."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


@cache
def ray_schema(kind: str) -> jsonschema.Draft202012Validator:
    if CRDS is None:
        pytest.skip("KubeRay's CRDs are not here (shared/crds): Ray kinds are not compared with their schema")
    crd = yaml.load((CRDS / RAY[kind]).read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    (version,) = (version for version in crd["spec"]["versions"] if version["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("overlays", VARIANTS, ids=lambda overlays: " ".join(overlays) or "base")
def test_core_kinds_pass_kubernetes_own_schema(overlays: tuple[str, ...]) -> None:
    core = [item for item in rendered(*overlays) if item["kind"] not in RAY]
    assert len(core) >= 4
    for item in core:
        kubernetes_validate.validate(item, KUBERNETES, strict=True)


@pytest.mark.parametrize("overlays", VARIANTS, ids=lambda overlays: " ".join(overlays) or "base")
def test_ray_kinds_pass_kuberays_schema(overlays: tuple[str, ...]) -> None:
    (item,) = (item for item in rendered(*overlays) if item["kind"] in RAY)
    assert [f"{error.json_path}: {error.message}" for error in ray_schema(item["kind"]).iter_errors(item)] == []


def test_a_misspelt_key_fails_both_schemas() -> None:
    (policy,) = (item for item in rendered() if item["kind"] == "NetworkPolicy")
    with pytest.raises(kubernetes_validate.ValidationError, match="egres"):
        kubernetes_validate.validate({**policy, "spec": {**policy["spec"], "egres": []}}, KUBERNETES, strict=True)
    (job,) = (item for item in rendered() if item["kind"] == "RayJob")
    wrong = {**job, "spec": {**job["spec"], "backofLimit": 1}}
    assert ["backofLimit" in error.message for error in ray_schema("RayJob").iter_errors(wrong)] == [True]
