"""What of a recipe goes into the ConfigMap that pods read it from, and what could not be found there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from funicular.launch.config_values import get
from funicular.launch.k8s_options import POD_DATA
from funicular.launch.recipe import PATHS, LoadedRecipe
from funicular.launch.sandbox_checks import effective_sandbox

MOUNT = "/etc/funicular"
_LIMIT = 900 * 1024
"""Bytes; Kubernetes takes one MiB with everything around it."""
_FILE_NAME = re.compile(r"[-._a-zA-Z0-9]+")


def config_map_data(loaded: LoadedRecipe) -> dict[str, str]:
    """File name to text: the recipe with the keys that were set, and the user's files of reward functions.

    Raises:
        ValueError: a file does not lie beside the recipe, or all are too large.
    """
    data = {"recipe.yaml": _recipe_text(loaded)}
    for name in loaded.config.reward.functions:
        file, colon, _ = name.rpartition(":")
        if not colon or not file.endswith(".py"):
            continue
        if not _FILE_NAME.fullmatch(file):
            raise ValueError(f"reward.functions: {name}: put {file} beside the recipe; a ConfigMap has no folders")
        data[file] = (loaded.folder / file).read_text(encoding="utf-8")
    size = sum(len(text.encode()) for text in data.values())
    if size > _LIMIT:
        raise ValueError(f"recipe and reward files have {size} bytes, a ConfigMap holds {_LIMIT}; make them smaller")
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


def _recipe_text(loaded: LoadedRecipe) -> str:
    """The keys that were set: the image's defaults serve for the others, as everywhere."""
    nested: dict[str, Any] = {}
    for key in sorted(loaded.origins):
        section, dot, last = key.rpartition(".")
        (nested.setdefault(section, {}) if dot else nested)[last] = get(loaded.as_written, key)
    return yaml.safe_dump(nested, sort_keys=True, allow_unicode=True, width=100)
