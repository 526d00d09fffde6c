"""What is shipped: packages, data files, light imports, locks without hosts, and no stray folder."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
FOLDERS = {".ci", ".github", ".types", "actors", "cluster", "docs", "k8s", "launch", "rewards", "tests"}
HEAVY = ("torch", "ray", "vllm", "deepspeed", "mlflow", "transformers")
LIGHT = ("funicular.rewards", "funicular.launch.config", "funicular.launch.cli")


def test_every_package_folder_is_listed_so_that_the_wheel_has_what_an_editable_install_has() -> None:
    found = {
        ".".join(("funicular", *init.parent.relative_to(ROOT).parts))
        for top in SETUPTOOLS["package-dir"].values()
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert set(SETUPTOOLS["packages"]) == found | {"funicular.k8s"}  # manifests: no modules


@pytest.mark.parametrize("module", LIGHT)
def test_reading_a_recipe_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


def test_the_wheel_has_recipes_and_type_markers_and_nothing_outside_its_namespace(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for top in SETUPTOOLS["package-dir"].values():
        shutil.copytree(ROOT / top, source / top, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    build += ["--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(build, check=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    recipes = {f"funicular/launch/recipes/{path.name}" for path in (ROOT / "launch/recipes").glob("*.yaml")}
    assert recipes
    assert recipes <= names
    modules = set(SETUPTOOLS["package-dir"].values()) - {"k8s"}
    assert {f"funicular/{top}/py.typed" for top in modules} <= names
    manifests = {f"funicular/{path.relative_to(ROOT)}" for path in (ROOT / "k8s").rglob("*.yaml")}
    assert manifests
    assert manifests <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"funicular"}
    assert "funicular/__init__.py" not in names  # a namespace: the folders stay where they are in the checkout


@pytest.mark.parametrize("lock", ["requirements-cpu.lock", "requirements-cuda.lock"])
def test_locks_pin_everything_and_name_no_host_or_path(lock: str) -> None:
    lines = (ROOT / lock).read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9._-]+==[A-Za-z0-9.+!]+", line)] == []


def test_the_cpu_lock_leaves_out_what_the_excludes_name() -> None:
    locked = {line.partition("==")[0] for line in (ROOT / "requirements-cpu.lock").read_text().splitlines()}
    excluded = set((ROOT / "requirements-excludes.txt").read_text().split())
    assert "torchvision" in excluded
    assert locked & excluded == set()


def test_every_direct_dependency_has_its_reason() -> None:
    extras = PROJECT["project"]["optional-dependencies"].values()
    direct = {
        re.split(r"[\[<>=]", requirement)[0].lower()
        for group in (PROJECT["project"]["dependencies"], *extras)
        for requirement in group
    }
    documented = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").lower()
    assert {name for name in direct if f"| `{name}` |" not in documented} == set()


def test_no_stray_folder_at_the_top() -> None:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines() if "/" in line}
    assert top <= FOLDERS


def test_a_python_that_is_not_there_is_named_and_no_package_is_blamed(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "FUNICULAR_PYTHON": "nowhere/python", "FUNICULAR_VENV": str(tmp_path)}
    command = ["bash", "-c", f"source {ROOT}/launch/bootstrap.sh; bootstrap"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("FUNICULAR_PYTHON=nowhere/python: there is no such program")
    assert "apt-get" not in done.stderr
