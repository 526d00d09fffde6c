"""What is known of a run before anything is started for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from funicular.launch.checkpoint_store import Store
from funicular.launch.checkpoints import Snapshot
from funicular.launch.run_folder import RunFolder
from funicular.launch.tasks import TaskSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a run needs before anything is started on the cluster."""

    folder: RunFolder
    recipe_folder: Path
    tasks: TaskSet
    model_folder: Path
    snapshot: Snapshot | None
    teacher_folder: Path | None = None
    """None: there is no teacher."""
    store: Store | None = None
    """Where checkpoints are copied to."""
