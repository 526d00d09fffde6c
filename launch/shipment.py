"""What of a recipe travels to a cluster: its folder as a zip, and the code of this installation. No Ray in here."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

from funicular.launch.config_values import get
from funicular.launch.k8s_options import FOLDER as MANIFESTS
from funicular.launch.recipe import PATHS, LoadedRecipe
from funicular.launch.recipe_files import PACKAGED, find_recipe
from funicular.rewards.config_checks import user_file
from funicular.rewards.functions import FUNCTIONS

LIMIT = 100 << 20
"""Bytes. Ray's job server takes no larger package (HTTP 413)."""
_LEDGER = "ledger.jsonl"
_BESIDE_RUNS = ("mlflow.db", "mlartifacts")
"""What runs without an MLflow server write into the folder above theirs."""
_PACKAGES = ("actors", "cluster", "launch", "rewards")
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipment:
    """A recipe that may travel."""

    recipes: tuple[str, ...]
    """As `-c` takes them there."""
    root: Path | None
    """The folder that becomes the driver's working directory; None: nothing of this machine is needed."""
    files: tuple[Path, ...]
    """Relative to `root`, sorted."""
    nbytes: int


def plan_shipment(
    loaded: LoadedRecipe, recipes: Sequence[str], working_dir: Path | None, exclude: Sequence[str]
) -> Shipment:
    """What must travel for a recipe.

    Args:
        recipes: as given with `-c`.
        working_dir: the folder that travels; None: the recipe's.
        exclude: patterns of paths relative to it that do not.

    Raises:
        ValueError: everything that would not be found there, or a folder that is too large.
    """
    root = (working_dir or loaded.folder).resolve()
    if not root.is_dir():
        raise ValueError(f"--working-dir={working_dir}: expected a folder")
    needed = list(_needed(loaded))
    problems = [*_not_for_a_cluster(loaded), *_outside(needed, root)]
    if problems:
        raise ValueError("\n  ".join([f"the recipe cannot run on a cluster as it is, sent with {root}:", *problems]))
    if working_dir is None and not needed:
        return Shipment(recipes=tuple(recipes), root=None, files=(), nbytes=0)
    files = {path: (root / path).stat().st_size for path in sorted(_files(root, exclude))}
    nbytes = sum(files.values())
    if nbytes > LIMIT:
        raise ValueError(_too_large(root, files, nbytes))
    for thing in needed:
        if thing.path.is_file() and thing.path.relative_to(root) not in files:
            raise ValueError(f"{thing.what}: {thing.path} is needed, but hidden or excluded, and would stay here")
    return Shipment(
        recipes=tuple(_name_there(name, root) for name in recipes), root=root, files=tuple(files), nbytes=nbytes
    )


def write_archive(shipment: Shipment, target: Path) -> Path:
    """The folder as a zip, the same to the byte for the same files, so that Ray sends it once; returns `target`."""
    assert shipment.root is not None
    with zipfile.ZipFile(target, "w") as archive:
        for path in shipment.files:
            entry = zipfile.ZipInfo(path.as_posix())  # a fixed date
            entry.external_attr = (shipment.root / path).stat().st_mode << 16
            archive.writestr(entry, (shipment.root / path).read_bytes(), zipfile.ZIP_DEFLATED)
    return target


def copy_package(target: Path) -> list[Path]:
    """This installation's code below `target`, as folders for Ray's `py_modules`.

    Not as a wheel: Ray would `pip install` it on each node with all its dependencies. What a wheel has besides the
    code, its name, version and entry points, is a second folder; vLLM finds our plugin by it.
    """
    code = target / "funicular"
    for name in _PACKAGES:
        spec = find_spec(f"funicular.{name}")
        assert spec is not None
        assert spec.submodule_search_locations is not None
        shutil.copytree(spec.submodule_search_locations[0], code / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(MANIFESTS, code / "k8s")
    installed = distribution("funicular")
    metadata = target / f"funicular-{installed.version}.dist-info"
    metadata.mkdir()
    for name in ("METADATA", "entry_points.txt"):
        (metadata / name).write_text(installed.read_text(name) or "", encoding="utf-8")
    return [code, metadata]


def user_functions(loaded: LoadedRecipe) -> Iterator[str]:
    """`path.py:function` of each reward function that is not built in."""
    for label in loaded.config.reward.functions:
        name = loaded.config.reward.function_of(label)
        if name not in FUNCTIONS:
            yield name


@dataclass(frozen=True, slots=True, kw_only=True)
class _Needed:
    """Something of this machine that the recipe names."""

    what: str
    """Who names it."""
    path: Path
    """Absolute."""
    from_working_dir: str | None = None
    """How the driver looks for it in its working directory; None: it is looked for beside the recipe."""


def _needed(loaded: LoadedRecipe) -> Iterator[_Needed]:
    for file in loaded.files:
        if file.parent != PACKAGED:
            yield _Needed(what="recipe", path=file)
    for name in user_functions(loaded):
        yield _Needed(what=f"reward.functions: {name}", path=user_file(name, loaded.folder))
    for key in PATHS:
        value = get(loaded.config, key)
        if isinstance(value, str) and not Path(value).is_absolute() and Path(value).exists():
            yield _Needed(what=f"{key}={value}", path=Path(value).resolve(), from_working_dir=value)


def _not_for_a_cluster(loaded: LoadedRecipe) -> Iterator[str]:
    config = loaded.config
    if config.run_dir is None or not Path(config.run_dir).is_absolute():
        yield (
            f"run_dir={config.run_dir or 'null'}: expected an absolute path that the head and all learner ranks see, "
            f"since Ray deletes a job's working directory. Write run_dir=/SHARED/runs/{config.name}"
        )
    store = config.checkpoint.path
    if store is not None and "://" not in store and not Path(store).is_absolute():
        yield f"checkpoint.path={store}: expected a URI or an absolute path of the cluster"
    if config.resume not in ("auto", "never") and not Path(config.resume).is_absolute():
        yield f"resume={config.resume}: expected auto, never or an absolute path of the cluster"
    if config.cluster.address != "auto":
        yield f"cluster.address={config.cluster.address}: expected auto, the cluster of the job. Leave the key out"
    for key in PATHS:
        value = get(config, key)
        if isinstance(value, str) and value.startswith("~"):
            yield f"{key}={value}: a home folder of this machine; write a path of the cluster"
    for name in user_functions(loaded):
        if Path(name.rpartition(":")[0]).is_absolute():
            yield f"reward.functions: {name}: write the file relative to the recipe"


def _outside(needed: Sequence[_Needed], root: Path) -> Iterator[str]:
    for thing in needed:
        if not thing.path.is_relative_to(root):
            yield (
                f"{thing.what}: {thing.path} lies outside of it. Move it there, or give --working-dir a folder that "
                "has both"
            )
        elif thing.from_working_dir is not None and (root / thing.from_working_dir).resolve() != thing.path:
            yield (
                f"{thing.what}: paths are relative to {root} there; write {thing.path.relative_to(root)} and submit "
                "from that folder"
            )


def _files(root: Path, exclude: Sequence[str]) -> Iterator[Path]:
    """All but hidden ones, caches, run folders, MLflow's files beside them, and what is excluded.

    Links to folders are not followed.
    """
    for folder, folders, names in os.walk(root):
        if _LEDGER in names:
            folders.clear()
            continue
        if any((Path(folder) / name / _LEDGER).is_file() for name in folders):
            folders[:], names = _without_mlflow(folders), _without_mlflow(names)
        here = Path(folder).relative_to(root)
        folders[:] = [name for name in folders if name != "__pycache__" and not _stays(here / name, exclude)]
        yield from (here / name for name in names if not _stays(here / name, exclude))


def _without_mlflow(names: list[str]) -> list[str]:
    return [name for name in names if name not in _BESIDE_RUNS]


def _stays(path: Path, exclude: Sequence[str]) -> bool:
    return path.name.startswith(".") or any(fnmatch(path.as_posix(), pattern.rstrip("/")) for pattern in exclude)


def _too_large(root: Path, files: dict[Path, int], nbytes: int) -> str:
    sizes: dict[str, int] = {}
    for path, size in files.items():
        sizes[path.parts[0]] = sizes.get(path.parts[0], 0) + size
    largest = sorted(sizes, key=lambda name: -sizes[name])[:_SHOWN]
    listing = ", ".join(f"{name} {sizes[name] / 2**20:,.0f} MiB" for name in largest)
    return (
        f"{root} has {nbytes / 2**20:,.0f} MiB; a job may carry {LIMIT >> 20}. Largest are {listing}. Put data and "
        "models on a file system of the cluster and name them by absolute path, keep the recipe in a folder of its "
        "own, or leave something here with --exclude PATTERN"
    )


def _name_there(name: str, root: Path) -> str:
    """A recipe as `-c` finds it from the folder that travels."""
    file = find_recipe(name, Path())
    assert file is not None
    return f"recipes/{file.name}" if file.parent == PACKAGED else file.relative_to(root).as_posix()
