"""The files of one checkpoint folder: manifest, hashes, durability.

learner/          parameters, optimizer, schedule, random state, by name (`actors/learner_state.py`)
ledger.jsonl      the ledger up to the checkpoint: with it a run goes on where its run folder is lost
state.json        step, position of the accounts, first evaluation, which run
manifest.json     every file with size and sha256; written last
evaluation.json   metrics of an evaluation at this step; may come later, so the manifest does not have it
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

FORMAT = 2
"""1 had the learner in DeepSpeed's own files, one set for each rank."""
MANIFEST = "manifest.json"
STATE = "state.json"
LEDGER = "ledger.jsonl"
EVALUATION = "evaluation.json"
_BLOCK = 1 << 20


class CheckpointError(ValueError):
    """A checkpoint that was asked for cannot be used; says which file and why."""


def folder_name(step: int) -> str:
    """`step_000010`."""
    return f"step_{step:06d}"


def step_of(name: str) -> int | None:
    """The step of a checkpoint's folder; None for other names."""
    number = name.removeprefix("step_")
    return int(number) if name.startswith("step_") and number.isdecimal() else None


def write_manifest(folder: Path, step: int) -> None:
    """Bring every file to disk and write the list of them."""
    files: dict[str, Any] = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        sync_file(file)
        if file.name == EVALUATION:
            continue
        files[file.relative_to(folder).as_posix()] = {"size": file.stat().st_size, "sha256": sha256(file)}
    for below in (p for p in folder.rglob("*") if p.is_dir()):
        sync_folder(below)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"format": FORMAT, "step": step, "files": files}, indent=1))
    sync_file(manifest)
    sync_folder(folder)


def read_manifest(text: str, where: str) -> Mapping[str, Any]:
    """A manifest's content: `format`, `step`, `files`.

    Raises:
        CheckpointError: it is no manifest, of another format, or names files outside the folder.
    """
    try:
        manifest = json.loads(text)
        found, files = manifest["format"], manifest["files"]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{where}: not a manifest ({error}); delete the folder, or move it away") from error
    if found != FORMAT:
        raise CheckpointError(
            f"{where}: format {found}, this version reads {FORMAT}; finish that run with the version that wrote it, or "
            "begin a new run (another name=... or run_dir=...) from its exported model (model.path)"
        )
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise CheckpointError(f"{where}: names the file {name}, which is not below it")
    return manifest


def verify(folder: Path) -> None:
    """Compare all files with the manifest.

    Raises:
        CheckpointError: no manifest, or a file is missing or differs from it.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise CheckpointError(f"{folder}: no manifest.json; not a complete checkpoint")
    for name, expected in read_manifest(manifest.read_text(), str(manifest))["files"].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != expected["size"]:
            raise CheckpointError(f"{file}: missing, or not the {expected['size']} bytes that the manifest names")
        if sha256(file) != expected["sha256"]:
            raise CheckpointError(f"{file}: its sha256 is not the manifest's; the file is damaged")


def write_whole(file: Path, text: str) -> None:
    """Write or replace a small file, so that a kill leaves the old one or the new one."""
    scratch = file.with_name(f"{file.name}.tmp")
    scratch.write_text(text)
    sync_file(scratch)
    scratch.rename(file)
    sync_folder(file.parent)


def copy_beginning(source: Path, target: Path, size: int) -> None:
    """Copy the first bytes of a file that others append to."""
    with source.open("rb") as reading, target.open("wb") as writing:
        while size and (block := reading.read(min(size, _BLOCK))):
            size -= writing.write(block)


def delete(folder: Path) -> None:
    """Delete a checkpoint."""
    (folder / MANIFEST).unlink()  # first, so that a half-deleted folder is none
    shutil.rmtree(folder)


def sha256(file: Path) -> str:
    """Hex digest of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_file(file: Path) -> None:
    """Bring a file's content to disk."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
