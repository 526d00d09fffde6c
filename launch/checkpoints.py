"""Checkpoints: folders `checkpoints/step_000010/` whose manifest is written last. Without one they do not exist.

Training waits while the learner writes its files. The rest goes on in the background: hashes, disk, manifest (then it
is complete), older ones deleted; and with `checkpoint.path` its copy in the store. Then only the newest stays in the
run folder, and `keep_last` and `keep_best` are the store's.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from funicular.actors.errors import RunStopped
from funicular.cluster.calls import DeadlineExceeded
from funicular.launch.accounts import Position
from funicular.launch.background import Result, in_background, wait_async, within
from funicular.launch.checkpoint_files import (
    EVALUATION,
    LEDGER,
    MANIFEST,
    STATE,
    copy_beginning,
    delete,
    folder_name,
    step_of,
    sync_folder,
    verify,
    write_manifest,
    write_whole,
)
from funicular.launch.checkpoint_store import Store, StoreError
from funicular.launch.checkpoint_upload import Uploads
from funicular.launch.checkpoint_work import CheckpointWork
from funicular.launch.config import CheckpointConfig
from funicular.launch.retention import kept

STORE_DEADLINE_S = 60.0
"""For small things in the store, such as a list of names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a run continues from."""

    path: Path
    step: int
    position: Position
    first_evaluation: Mapping[str, float] | None
    """Metrics of the evaluation before training, if there was one."""
    run: str | None
    """`run_id` of the run that wrote it."""
    asked_for: bool = False
    """True: `resume` names it; False: it was the newest."""

    @property
    def learner(self) -> str:
        """The folder that the learner loads."""
        return str(self.path / "learner")


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: `checkpoints/` of the run folder.
        store: where they are copied to; None: they stay in the run folder only.
    """

    def __init__(self, folder: Path, config: CheckpointConfig, store: Store | None = None) -> None:
        self.store = store
        self._folder = folder
        self._config = config
        self._work = CheckpointWork(config.deadline_s, f"{folder} and {store.shown}" if store else str(folder))
        self._uploads = Uploads(store, config, self._work.say) if store else None

    @property
    def not_stored(self) -> str | None:
        """Why the newest checkpoint is not in the store; None if it is, or if there is no store."""
        return self._uploads.missing if self._uploads else None

    async def save(
        self,
        step: int,
        position: Position,
        first_evaluation: Mapping[str, float] | None,
        save_learner: Callable[[str], Awaitable[None]],
        *,
        ledger: Path,
        evaluation: Mapping[str, float] | None = None,
    ) -> Path:
        """Have the learner write its part, and begin the rest; returns where the checkpoint will be.

        Args:
            save_learner: writes the learner's part into the folder it is given.
            ledger: its content up to now belongs to the checkpoint.
            evaluation: metrics that were measured at this step.

        Raises:
            RunStopped: the one before could not be completed, or takes longer than `checkpoint.deadline_s`.
        """
        ledger_size = ledger.stat().st_size  # before anything is awaited, and others append to it
        state = {
            "step": step,
            "position": position.to_json(),
            "first_evaluation": first_evaluation,
            "run": run_id(ledger),
        }
        await self._work.settle()
        self._recover()
        for leftover in self._folder.glob("step_*.tmp"):  # of a crash
            shutil.rmtree(leftover)
        final = self._folder / folder_name(step)
        scratch = self._folder / f"{final.name}.tmp"
        (scratch / "learner").mkdir(parents=True)
        await save_learner(str(scratch / "learner"))
        (scratch / STATE).write_text(json.dumps(state, indent=1))
        if evaluation:
            (scratch / EVALUATION).write_text(json.dumps(evaluation))

        def seal() -> None:
            copy_beginning(ledger, scratch / LEDGER, ledger_size)
            write_manifest(scratch, step)
            _move_into_place(scratch, final)
            self._work.say(f"checkpoint {final.name}")
            self._prune()

        def then(until: float) -> None:
            if self._uploads:
                self._uploads.upload(final, until)

        self._work.begin(f"checkpoint {final.name}", seal, then)
        return final

    async def measured(self, step: int, evaluation: Mapping[str, float]) -> None:
        """Note what an evaluation found at a step whose checkpoint is there already. Waits for the background.

        Raises:
            RunStopped: what was under way failed, or this did.
        """
        await self._work.settle()
        final = self._folder / folder_name(step)
        if not (final / MANIFEST).is_file():
            return

        def seal() -> None:
            write_whole(final / EVALUATION, json.dumps(dict(evaluation)))
            self._prune()

        def then(until: float) -> None:
            if self._uploads:
                self._uploads.add_evaluation(step, dict(evaluation))

        self._work.begin(f"the evaluation of {final.name}", seal, then)
        await self._work.settle()

    async def sealed(self) -> None:
        """Wait until the checkpoint under way is complete in the run folder; raises RunStopped if it cannot be."""
        await self._work.sealed()

    async def settle(self) -> None:
        """Wait for everything under way; raises RunStopped. An upload that was given up is in `not_stored`."""
        await self._work.settle()

    def news(self) -> tuple[list[str], dict[str, float]]:
        """Sentences, and metrics of what has ended in the background, since the last call.

        Raises:
            RunStopped: a checkpoint could not be completed.
        """
        sentences, seconds = self._work.news()
        metrics = {} if seconds is None else {"time/checkpoint_background_s": seconds}
        if metrics and self._uploads:
            metrics["checkpoint/store_failures"] = float(self._uploads.failures)
        return sentences, metrics

    def catch_up(self) -> None:
        """Begin to upload the newest checkpoint if the store lacks it: an earlier process may not have come so far."""
        complete = self.steps()
        if self._uploads is None or not complete or self._work.busy:
            return
        uploads, final = self._uploads, self._folder / folder_name(complete[-1])

        def then(until: float) -> None:
            uploads.upload(final, until, unless_there=True)

        self._work.begin(f"the copy of {final.name}", lambda: None, then)

    async def forget_after(self, step: int) -> None:
        """Delete the checkpoints of later steps: the history that they continue is void.

        Raises:
            RunStopped: the store does not delete them.
        """
        for later in reversed(self.steps()):  # newest first: a kill in between leaves no void one to continue
            if later > step:
                delete(self._folder / folder_name(later))
        store = self.store
        if store is None:
            return

        def forget() -> None:
            for later in reversed(store.steps()):
                if later > step:
                    store.delete(later)

        what = f"checkpoints after step {step} to be deleted in {store.shown}"
        try:
            await wait_async(in_background(forget, "forget"), self._config.deadline_s, what)
        except (StoreError, DeadlineExceeded) as error:
            raise RunStopped(f"{error}. They are void, and a later resume would take them for the newest") from error

    def newest(self) -> Snapshot | None:
        """The newest complete checkpoint of the run folder; folders without a manifest are ignored.

        Raises:
            CheckpointError: a file of it is damaged.
        """
        self._recover()
        complete = self.steps()
        return read_snapshot(self._folder / folder_name(complete[-1])) if complete else None

    def newest_anywhere(self) -> Snapshot | None:
        """The newest one of run folder and store; from the store it is copied here first.

        Raises:
            CheckpointError: a file of it is damaged.
            StoreError: it cannot be copied.
        """
        self._recover()
        here, there = self.steps(), self.stored()
        return self.get(there[-1]) if there and (not here or there[-1] > here[-1]) else self.newest()

    def get(self, step: int) -> Snapshot:
        """A checkpoint of the run folder, or of the store, which is copied here first.

        Raises:
            CheckpointError: it is nowhere, or a file of it is damaged.
            StoreError: it cannot be copied.
        """
        final = self._folder / folder_name(step)
        store = self.store
        if store and not (final / MANIFEST).is_file() and step in self.stored():
            scratch = final.with_name(f"{final.name}.tmp")
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            _start_up(lambda: store.fetch(step, scratch), self._config.deadline_s, f"copying {final.name}", store)
            verify(scratch)
            _move_into_place(scratch, final)
            return _snapshot_in(final)
        return read_snapshot(final)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints in the run folder, oldest first."""
        steps = ((step_of(path.name), path) for path in self._folder.glob("step_*"))
        return sorted(step for step, path in steps if step is not None and (path / MANIFEST).is_file())

    def stored(self) -> list[int]:
        """Steps of the complete checkpoints in the store, oldest first; none without a store.

        Raises:
            StoreError: they cannot be listed.
        """
        store = self.store
        return _start_up(store.steps, STORE_DEADLINE_S, "listing", store) if store else []

    def refuse_unwritable(self) -> None:
        """Write and delete a small file in the store, if there is one.

        Raises:
            StoreError: it cannot be done.
        """
        if self.store:
            _start_up(self.store.probe, STORE_DEADLINE_S, "a small file", self.store)

    def run_of_store(self) -> str | None:
        """`run_id` of the run whose checkpoints are in the store; None without any.

        Raises:
            StoreError: it cannot be read.
        """
        store, stored = self.store, self.stored()
        if store is None or not stored:
            return None
        return _start_up(lambda: store.state(stored[-1]), STORE_DEADLINE_S, "reading", store)["run"]

    def _prune(self) -> None:
        """Delete what is not kept in the run folder, and what a kill left half deleted."""
        for path in self._folder.glob("step_*"):
            if step_of(path.name) is not None and not (path / MANIFEST).is_file():
                shutil.rmtree(path)
        config = self._config
        values = {step: self._evaluation(step).get(config.best_metric) for step in self.steps()}
        last, best = (1, 0) if self.store else (config.keep_last, config.keep_best)
        for step in values.keys() - kept(values, keep_last=last, keep_best=best):
            delete(self._folder / folder_name(step))

    def _evaluation(self, step: int) -> Mapping[str, float]:
        file = self._folder / folder_name(step) / EVALUATION
        return json.loads(file.read_text()) if file.is_file() else {}

    def _recover(self) -> None:
        """Put back a checkpoint that was moved aside for another of its step, if the kill came before that one."""
        for aside in self._folder.glob("step_*.old.tmp"):
            final = aside.with_name(aside.name.removesuffix(".old.tmp"))
            if (aside / MANIFEST).is_file() and not final.exists():
                aside.rename(final)


def read_snapshot(path: Path) -> Snapshot:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: no manifest, or a file is missing or differs from it.
    """
    verify(path)
    return _snapshot_in(path)


def run_id(ledger: Path) -> str | None:
    """What tells a run from all others: a digest of its ledger's first event. None before that."""
    if not ledger.is_file():
        return None
    with ledger.open("rb") as file:
        first = file.readline()
    return hashlib.sha256(first).hexdigest()[:16] if first.endswith(b"\n") else None


def _snapshot_in(path: Path) -> Snapshot:
    state = json.loads((path / STATE).read_text())
    return Snapshot(
        path=path,
        step=state["step"],
        position=Position.from_json(state["position"]),
        first_evaluation=state["first_evaluation"],
        run=state["run"],
    )


def _start_up(function: Callable[[], Result], deadline_s: float, what: str, store: Store) -> Result:
    """Ask the store for something before a run starts, when nothing else can go on."""
    try:
        return within(function, deadline_s, f"{what}: {store.shown}")
    except DeadlineExceeded as error:
        raise StoreError(f"checkpoint.path: {error}; is it reachable from here?") from error


def _move_into_place(scratch: Path, final: Path) -> None:
    aside = final.with_name(f"{final.name}.old.tmp")
    if final.exists():  # of an attempt that was rolled back
        final.rename(aside)
    scratch.rename(final)
    sync_folder(final.parent)
    if aside.exists():
        shutil.rmtree(aside)
