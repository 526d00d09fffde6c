"""Copies of checkpoints in the store. What fails there is counted, said and tried again; training goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from funicular.launch.checkpoint_files import step_of
from funicular.launch.checkpoint_store import Store, StoreError
from funicular.launch.config import CheckpointConfig
from funicular.launch.retention import kept

log = logging.getLogger(__name__)


class Uploads:
    """Brings checkpoints to the store and keeps order there. Runs on the background's thread.

    Args:
        say: is given a sentence for the run's log.
    """

    def __init__(self, store: Store, config: CheckpointConfig, say: Callable[[str], None]) -> None:
        self.failures = 0
        """Tries that failed."""
        self.missing: str | None = None
        """Why the newest checkpoint is not in the store."""
        self._store = store
        self._config = config
        self._say = say

    def upload(self, folder: Path, until: float, *, unless_there: bool = False) -> None:
        """Copy a complete checkpoint, then delete what is not kept. Gives up at `until`, and says so.

        Args:
            unless_there: do nothing if the store has a checkpoint of this step.
        """
        try:
            if unless_there and step_of(folder.name) in self._store.steps():
                return
            self.missing = f"{folder.name} is not in {self._store.shown} yet"
            self._store.upload(folder, until=until, failed=self._failed)
        except StoreError as error:
            self.missing = str(error)
            self._say(f"upload given up: {error}; {folder.name} is complete in {folder.parent}")
            return
        self.missing = None
        self._say(f"checkpoint {folder.name} is in {self._store.shown}")
        self.prune()

    def add_evaluation(self, step: int, evaluation: dict[str, float]) -> None:
        """Add what was measured later to a checkpoint in the store, and delete what is not kept."""
        try:
            if step in self._store.steps():
                self._store.put_evaluation(step, evaluation)
        except StoreError as error:
            self._failed(str(error))
        else:
            self.prune()

    def prune(self) -> None:
        """Delete what `keep_last` and `keep_best` do not keep, and what interrupted uploads left."""
        store, config = self._store, self._config
        try:
            store.sweep()
            values = {step: store.evaluation(step).get(config.best_metric) for step in store.steps()}
            for step in values.keys() - kept(values, keep_last=config.keep_last, keep_best=config.keep_best):
                store.delete(step)
        except StoreError as error:  # the next one tries again
            self._failed(str(error))

    def _failed(self, sentence: str) -> None:
        self.failures += 1
        log.warning("checkpoint store: %s (%d failures so far)", sentence, self.failures)
        self._say(f"checkpoint store: {sentence}")
