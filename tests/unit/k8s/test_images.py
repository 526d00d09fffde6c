"""Dockerfiles name what is there, and agree with the manifests and the locks. Nothing is built here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from funicular.launch.k8s_manifest import containers
from funicular.launch.k8s_options import FOLDER
from funicular.rewards.sandbox.slot.visible import SHOWN_PACKAGES
from tests.unit.k8s.conftest import rendered, with_required

ROOT = Path(__file__).parents[3]
DOCKERFILES = sorted((FOLDER / "images").glob("*.Dockerfile"))
LOCK = dict(line.split("==") for line in (ROOT / "requirements-cuda.lock").read_text().split())
IMPORTED_AS = {"attr": "attrs", "attrs": "attrs"}
every_dockerfile = pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)


def instructions(file: Path) -> list[list[str]]:
    """Words of each instruction, with its continuation lines and without comments."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    return [line.split() for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines() if line.strip()]


def stages(file: Path) -> list[list[list[str]]]:
    """Instructions of each stage. The last one is the image."""
    found: list[list[list[str]]] = []
    for words in instructions(file):
        if words[0] == "FROM":
            found.append([])
        found[-1].append(words)
    return found


def copied(found: list[list[str]]) -> set[str]:
    """Paths of the build context that instructions copy."""
    own = [words[1:-1] for words in found if words[0] == "COPY" and not words[1].startswith("--from=")]
    return {path for paths in own for path in paths}


def test_every_image_of_ours_in_the_manifests_has_its_dockerfile() -> None:
    named = {container["image"].partition(":")[0] for container in containers(list(rendered("mlflow")))}
    assert {name for name in named if name.startswith("funicular-")} == {
        f"funicular-{file.name.partition('.')[0]}" for file in DOCKERFILES
    }


@every_dockerfile
def test_a_dockerfile_copies_what_is_there_and_ends_as_the_manifests_user(file: Path) -> None:
    paths = copied(instructions(file))
    assert paths
    assert {path for path in paths if not (ROOT / path).exists()} == set()
    assert [words for words in instructions(file) if words[0] == "USER"] == [["USER", "10001:10001"]]
    in_order = [words[0] for words in stages(file)[-1]]
    assert "RUN" not in in_order[in_order.index("USER") :]  # installing takes root


@every_dockerfile
def test_stages_start_from_a_tag_or_an_earlier_stage_and_copy_from_earlier_stages(file: Path) -> None:
    earlier: set[str] = set()
    for (_, base, *named), *rest in stages(file):
        assert base in earlier or re.fullmatch(r"\S+:\d\S+", base)
        sources = {words[1] for words in rest if words[0] == "COPY" and words[1].startswith("--from=")}
        assert sources <= {f"--from={stage}" for stage in earlier}
        earlier |= set(named[1:])


def test_the_build_context_holds_what_dockerfiles_copy_and_nothing_else() -> None:
    first, *rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    wanted = {path.partition("/")[0] for file in DOCKERFILES for path in copied(instructions(file))}
    assert first == "*"
    assert rules == [*(f"!{name}" for name in sorted(wanted)), "**/__pycache__"]


@pytest.mark.parametrize("name", ["gpu", "sandbox"])
def test_the_packages_are_a_layer_that_the_project_does_not_change(name: str) -> None:
    packages, *_, image = stages(FOLDER / "images" / f"{name}.Dockerfile")
    assert packages[0][-1] == "packages"
    assert copied(packages) <= {"requirements-cuda.lock", "k8s/images/sandbox-packages.txt"}
    assert ["COPY", "--from=packages", "/opt/venv", "/opt/venv"] in image


def test_both_ray_images_install_the_whole_project() -> None:
    folders = set(
        re.findall(r'= "(\w+)"', (ROOT / "pyproject.toml").read_text().split("package-dir")[1].split("\n")[0])
    )
    for name in ("gpu", "sandbox"):
        text = (FOLDER / "images" / f"{name}.Dockerfile").read_text()
        assert {folder for folder in folders if f"COPY {folder} /build/{folder}" not in text} == set()


def test_the_sandbox_image_has_every_package_that_judged_code_may_see() -> None:
    listed = {line.partition("[")[0] for line in (FOLDER / "images" / "sandbox-packages.txt").read_text().split()}
    brought = {
        "_hypothesis_globals",
        "_pytest",
        "iniconfig",
        "packaging",
        "pluggy",
        "py",
        "pygments",
    }  # by the listed ones
    wanted = {IMPORTED_AS.get(name, name) for name in SHOWN_PACKAGES} - brought
    assert wanted <= listed
    assert listed <= set(LOCK)


def installed(file: Path) -> set[str]:
    """What pip and uv are told to install by name: neither options nor files."""
    found: set[str] = set()
    for words in instructions(file):
        for command in " ".join(words[1:]).split(" && ") if words[0] == "RUN" else ():
            name, _, rest = command.partition(" install ")
            if rest and name.endswith("pip"):
                found |= {word for word in rest.split() if not word.startswith(("-", "/"))}
    return found


@every_dockerfile
def test_every_python_package_of_an_image_has_one_version(file: Path) -> None:
    of_lock = {name for name in installed(file) if "==" not in name}
    if file.name == "sandbox.Dockerfile":
        of_lock |= set((FOLDER / "images" / "sandbox-packages.txt").read_text().split())
    assert with_required(of_lock) <= set(LOCK)  # else a constraint leaves the version to the day of the build
    if of_lock:
        assert "--constraint /build/requirements-cuda.lock" in file.read_text()


def test_the_names_that_an_image_installs_are_found() -> None:
    assert installed(FOLDER / "images" / "mlflow.Dockerfile") == {"mlflow", "psycopg2-binary==2.9.13"}
    assert installed(FOLDER / "images" / "sandbox.Dockerfile") == {"uv==0.13.9", "setuptools"}


def test_the_clusters_ray_is_the_images() -> None:
    (job,) = (item for item in rendered() if item["kind"] == "RayJob")
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == LOCK["ray"]
