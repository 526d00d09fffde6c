"""What of a recipe goes into the ConfigMap that pods read it from, and what could not be found there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from funicular.launch.config_values import get
from funicular.launch.k8s_options import POD_DATA
from funicular.launch.recipe import PATHS, LoadedRecipe
from funicular.launch.sandbox_checks import effective_sandbox
from funicular.launch.shipment import user_functions

MOUNT = "/etc/funicular"
_LIMIT = 240 * 1024
"""Bytes as JSON: `kubectl apply` keeps the object in an annotation too, which holds 256 KiB."""
_SHOWN = 3
_FILE_NAME = re.compile(r"[-._a-zA-Z0-9]+")


def config_map_data(loaded: LoadedRecipe) -> dict[str, str]:
    """File name to text: the recipe with the keys that were set, the user's reward files and the modules beside them.

    Raises:
        ValueError: a file does not lie beside the recipe, is no text, or all are too large.
    """
    data = {"recipe.yaml": _recipe_text(loaded)}
    for file in _reward_files(loaded):
        try:
            data[file] = (loaded.folder / file).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{loaded.folder / file}: {error}; a ConfigMap holds text: save it as UTF-8") from error
    sizes = {file: len(json.dumps(text).encode()) for file, text in data.items()}
    if sum(sizes.values()) > _LIMIT:
        largest = sorted(sizes, key=lambda file: -sizes[file])[:_SHOWN]
        raise ValueError(
            f"the recipe and the *.py files beside it in {loaded.folder} have {sum(sizes.values())} bytes, and a "
            f"ConfigMap may carry {_LIMIT}; the largest are {', '.join(f'{file} {sizes[file]}' for file in largest)}. "
            "Keep the recipe and its reward files in a folder of their own"
        )
    return data


def unreachable(loaded: LoadedRecipe) -> Iterator[str]:
    """What of a recipe cannot work in pods, each with its fix."""
    config = loaded.config
    for key in (*PATHS, "checkpoint.path", "run_dir"):
        value = get(config, key)
        if not isinstance(value, str) or "://" in value or value.startswith(f"{POD_DATA}/"):
            continue
        if value.startswith(("/", "~", ".")) or (loaded.folder / value).exists() or Path(value).exists():
            yield f"{key}={value}: a path of this machine; copy it to the volume and write {POD_DATA}/..."
    if config.cluster.address != "auto":
        yield f"cluster.address={config.cluster.address}: expected auto, the cluster of the pod; leave the key out"
    if config.resume == "never":
        yield "resume=never: a second attempt would refuse the run folder of the first; leave the key out"
    if effective_sandbox(config).min_level == "L3":
        yield (
            "sandbox.min_level=L3, or a language that needs it: pods under the standard `restricted` reach L1; see "
            "docs/kubernetes.md#level-l3"
        )


def _reward_files(loaded: LoadedRecipe) -> list[str]:
    """Files of reward functions, and what they may import: every module beside them. None where all are built in."""
    named = {name: name.rpartition(":")[0] for name in user_functions(loaded)}
    for name, file in named.items():
        if not _FILE_NAME.fullmatch(file):
            raise ValueError(
                f"reward function {name}: expected a file beside the recipe, of letters, digits, '-', '_' and '.'; "
                f"a ConfigMap has no folders. Move or rename {file}"
            )
    if not named:
        return []
    beside = {path.name for path in loaded.folder.glob("*.py") if path.is_file() and path.stem.isidentifier()}
    if refused := sorted(file for file in beside if not _FILE_NAME.fullmatch(file)):
        raise ValueError(
            f"{loaded.folder / refused[0]}: a reward file may import it, and a ConfigMap takes no such name; expected "
            "letters, digits, '-', '_' and '.'. Rename it, or move it elsewhere"
        )
    return sorted(beside.union(named.values()))


def _recipe_text(loaded: LoadedRecipe) -> str:
    """The keys that were set: the image's defaults serve for the others, as everywhere."""
    nested: dict[str, Any] = {}
    for key in sorted(loaded.origins):
        section, dot, last = key.rpartition(".")
        (nested.setdefault(section, {}) if dot else nested)[last] = get(loaded.as_written, key)
    return yaml.safe_dump(nested, sort_keys=True, allow_unicode=True, width=100)
