"""Checkpoints: folders `checkpoints/step_000010/` whose manifest is written last. Without one they do not exist.

learner/        parameters, optimizer, schedule, random state, by name (`actors/learner_state.py`)
state.json      step, position of the accounts, first evaluation
manifest.json   every file with size and sha256; written last
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from funicular.launch.accounts import Position

FORMAT = 2
"""1 had the learner in DeepSpeed's own files, one set for each rank."""


class CheckpointError(ValueError):
    """A checkpoint that was asked for cannot be used; says which file and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a run continues from."""

    path: Path
    step: int
    position: Position
    first_evaluation: Mapping[str, float] | None
    """Metrics of the evaluation before training, if there was one."""
    asked_for: bool = False
    """True: `resume` names it; False: it was the newest."""

    @property
    def learner(self) -> str:
        """The folder that the learner loads."""
        return str(self.path / "learner")


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, folder: Path, keep_last: int) -> None:
        self._folder = folder
        self._keep_last = keep_last

    async def save(
        self,
        step: int,
        position: Position,
        first_evaluation: Mapping[str, float] | None,
        save_learner: Callable[[str], Awaitable[None]],
    ) -> Path:
        """Write a checkpoint; complete, or as if it had never begun.

        Args:
            save_learner: writes the learner's part into the folder it is given.
        """
        final = self._folder / f"step_{step:06d}"
        scratch = self._folder / f"step_{step:06d}.tmp"
        for leftover in self._folder.glob("step_*.tmp"):  # of a crash
            shutil.rmtree(leftover)
        (scratch / "learner").mkdir(parents=True)
        await save_learner(str(scratch / "learner"))
        state = {"step": step, "position": position.to_json(), "first_evaluation": first_evaluation}
        (scratch / "state.json").write_text(json.dumps(state, indent=1))
        await asyncio.to_thread(_write_manifest, scratch, step)
        replaced = self._folder / f"step_{step:06d}.old.tmp"
        if final.exists():  # of an attempt that was rolled back
            final.rename(replaced)
        scratch.rename(final)
        _sync_folder(self._folder)
        if replaced.exists():
            shutil.rmtree(replaced)
        for old in self._complete()[: -self._keep_last]:
            _delete(old)
        return final

    def forget_after(self, step: int) -> None:
        """Delete the checkpoints of later steps: the history that they continue is void."""
        for path in reversed(self._complete()):  # newest first: a kill in between leaves no void one to continue
            if _step_of(path) > step:
                _delete(path)

    def newest(self) -> Snapshot | None:
        """The newest complete checkpoint; folders without a valid manifest are ignored."""
        complete = self._complete()
        return read_snapshot(complete[-1]) if complete else None

    def _complete(self) -> list[Path]:
        folders = (p for p in self._folder.glob("step_*") if p.suffix != ".tmp")
        return sorted(p for p in folders if (p / "manifest.json").is_file())


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _delete(path: Path) -> None:
    (path / "manifest.json").unlink()  # first, so that a half-deleted folder is none
    shutil.rmtree(path)


def read_snapshot(path: Path) -> Snapshot:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: no manifest, or a file is missing or differs from it.
    """
    manifest_path = path / "manifest.json"
    if not manifest_path.is_file():
        raise CheckpointError(f"{path}: no manifest.json; not a complete checkpoint")
    manifest = json.loads(manifest_path.read_text())
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"{manifest_path}: format {manifest['format']}, this version reads {FORMAT}; finish that run with the "
            "version that wrote it, or begin a new run (another name=... or run_dir=...) from its exported model "
            "(model.path)"
        )
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != expected["size"]:
            raise CheckpointError(f"{file}: missing, or not the {expected['size']} bytes that the manifest names")
        if _sha256(file) != expected["sha256"]:
            raise CheckpointError(f"{file}: its sha256 is not the manifest's; the file is damaged")
    state = json.loads((path / "state.json").read_text())
    return Snapshot(
        path=path,
        step=state["step"],
        position=Position.from_json(state["position"]),
        first_evaluation=state["first_evaluation"],
    )


def _write_manifest(folder: Path, step: int) -> None:
    files: dict[str, Any] = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        _sync_file(file)
        files[str(file.relative_to(folder))] = {"size": file.stat().st_size, "sha256": _sha256(file)}
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps({"format": FORMAT, "step": step, "files": files}, indent=1))
    _sync_file(manifest)
    _sync_folder(folder)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync_file(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
