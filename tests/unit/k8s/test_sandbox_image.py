"""What sandbox pods run imports nothing that their image has not."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from funicular.launch.k8s_options import FOLDER
from tests.unit.k8s.conftest import with_required

PODS_RUN = (
    "ray",
    "funicular.actors.sandbox_pool",
    "funicular.cluster.node_stats",
    "funicular.launch.cli",
    "funicular.launch.sandbox_probe",
)
REFUSE = """
import importlib, json, sys
absent, wanted = json.loads(sys.argv[1])
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"not in the sandbox image: {name}", name=name)
sys.meta_path.insert(0, Absent())
for name in wanted:
    importlib.import_module(name)
from funicular.cluster.node_stats import NodeStats
stats = NodeStats(period_s=0.01)
stats.close()
"""


def in_the_image() -> set[str]:
    """Distributions of the package list, with all that they require."""
    return with_required((FOLDER / "images" / "sandbox-packages.txt").read_text().split())


def run_without(absent: set[str], modules: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    arguments = json.dumps([sorted(absent), modules])
    command = [sys.executable, "-c", REFUSE, arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def absent_modules() -> set[str]:
    """Top-level modules of this environment that only distributions outside of the image bring."""
    there = in_the_image() | {"funicular"}
    brought_by = {
        module: {canonicalize_name(name) for name in names} for module, names in packages_distributions().items()
    }
    ray = find_spec("ray")
    assert ray
    assert ray.origin
    of_ray = {path.stem for path in (Path(ray.origin).parent / "thirdparty_files").iterdir()}  # copies of its own
    return {module for module, names in brought_by.items() if not names & there} - of_ray


def test_pools_their_nodes_monitor_and_the_probe_need_only_the_images_packages() -> None:
    absent = absent_modules()
    assert {"torch", "vllm", "deepspeed", "transformers", "mlflow", "datasets"} <= absent
    done = run_without(absent, PODS_RUN)
    assert done.returncode == 0, done.stderr
    assert "not in the sandbox image" not in done.stderr  # nor in the thread that looks at the node


@pytest.mark.parametrize("name", ["psutil", "ray"])
def test_a_package_that_the_image_lacked_would_be_noticed(name: str) -> None:
    assert name not in absent_modules()
    done = run_without(absent_modules() | {name}, PODS_RUN)
    assert f"not in the sandbox image: {name}" in done.stderr
