"""What a run continues from, as `resume` says: found before anything is started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath

from funicular.launch.addresses import is_uri, shown_address
from funicular.launch.checkpoint_files import LEDGER, step_of, sync_file, sync_folder
from funicular.launch.checkpoints import Checkpoints, Snapshot, run_id
from funicular.launch.config import Config
from funicular.launch.ledger import read_events
from funicular.launch.run_folder import RunFolder

_BLOCK = 1 << 20


def find_snapshot(config: Config, folder: RunFolder, checkpoints: Checkpoints) -> Snapshot | None:
    """The checkpoint to continue from, with the run folder's ledger as it needs it; None: the initial model.

    Raises:
        ValueError: resume=never in a folder that has a run; a path that is none of this run's; a store with another
            run's checkpoints.
        CheckpointError: the checkpoint is not whole.
        StoreError: the store cannot be read.
    """
    has_run = folder.ledger.exists() and folder.ledger.stat().st_size > 0
    stored = checkpoints.run_of_store()
    if config.resume == "never" and (has_run or stored):
        place = f"{folder.path} holds a run (ledger.jsonl)"
        if not has_run and checkpoints.store:
            place = f"{checkpoints.store.shown} holds a run's checkpoints"
        raise ValueError(
            f"resume=never, but {place}; give another name=... or run_dir=..., delete that folder, or continue the run "
            "with resume=auto"
        )
    if config.resume == "never":
        return None
    if checkpoints.store and has_run and stored not in (None, run_id(folder.ledger)):
        raise ValueError(
            f"checkpoint.path: {checkpoints.store.shown} holds checkpoints of another run than {folder.path}; give "
            "this run another name=... or checkpoint.path=..., or continue the other one with a new run_dir=..."
        )
    snapshot = _newest_or_asked(config, folder, checkpoints)
    if snapshot:
        adopt_ledger(snapshot, folder.ledger)
    return snapshot


def adopt_ledger(snapshot: Snapshot, ledger: Path) -> None:
    """Begin a lost ledger with the checkpoint's, which ends where the checkpoint was taken.

    Raises:
        ValueError: there is one, and its history is not the checkpoint's.
    """
    saved = snapshot.path / LEDGER
    if not ledger.exists() or ledger.stat().st_size == 0:
        scratch = ledger.with_name(f"{ledger.name}.tmp")
        scratch.write_bytes(saved.read_bytes())
        sync_file(scratch)
        scratch.rename(ledger)
        sync_folder(ledger.parent)
    elif not _begins_with(ledger, saved):
        raise ValueError(
            f"{snapshot.path} was taken in another history than that of {ledger}: the run went on elsewhere from an "
            "earlier checkpoint. Give a new run_dir=... to continue the checkpoint, or move the checkpoint away to "
            "continue what this folder has"
        )


def _newest_or_asked(config: Config, folder: RunFolder, checkpoints: Checkpoints) -> Snapshot | None:
    if config.resume == "auto":
        return checkpoints.newest_anywhere()
    asked = PurePosixPath(config.resume)
    step = step_of(asked.name)
    if step is None or not _is_of_this_run(config.resume, folder, checkpoints):
        store = f" or {checkpoints.store.shown}" if checkpoints.store else ""
        raise ValueError(
            f"resume={config.resume}: not in {folder.checkpoints}{store}; a run continues its own checkpoints. To "
            "train on from another run's result, give that run's model folder as model.path"
        )
    went_back = any(
        event["event"] == "rolled_back" and event["asked_for"] and event["checkpoint"] == asked.name
        for event in (read_events(folder.ledger) if folder.ledger.exists() else ())
    )
    if went_back:  # the same command, started again by a scheduler: what was done since is kept
        return checkpoints.newest_anywhere()
    return replace(checkpoints.get(step), asked_for=True)


def _is_of_this_run(path: str, folder: RunFolder, checkpoints: Checkpoints) -> bool:
    parent = path.rstrip("/").rpartition("/")[0]
    if checkpoints.store and shown_address(parent) == checkpoints.store.shown:
        return True
    return not is_uri(path) and Path(path).resolve().parent == folder.checkpoints.resolve()


def _begins_with(file: Path, beginning: Path) -> bool:
    with file.open("rb") as whole, beginning.open("rb") as part:
        while block := part.read(_BLOCK):
            if whole.read(len(block)) != block:
                return False
    return True
