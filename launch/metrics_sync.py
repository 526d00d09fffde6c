"""`funicular metrics sync RUN_DIR`: send to MLflow what it does not have of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml
from funicular.launch.metrics_file import read_metrics
from funicular.launch.mlflow_run import MlflowRun, MlflowTarget, public_uri, tracking_uri
from funicular.launch.run_folder import RunFolder, RunFolderLocked


def sync_run(run_dir: Path, say: Callable[[str], None] = print) -> int:
    """Back-fill the MLflow run of `run_dir` from its `metrics.jsonl` and its tables of completions.

    Of each step the highest attempt counts. Sending twice changes nothing: a value is known by name, step and time.
    The run is made if MLflow never had it.

    Returns:
        How many values and tables were sent.

    Raises:
        ValueError: `run_dir` is no run folder.
        Exception: whatever MLflow raises when it cannot be reached.
    """
    folder = RunFolder(path=Path(run_dir).absolute())
    for needed in (folder.metrics, folder.config):
        if not needed.exists():
            raise ValueError(
                f"{folder.path} is no run folder: it has no {needed.name}; give the folder of a run"
            )
    config = yaml.safe_load(folder.config.read_text(encoding="utf-8")) or {}
    tracking = config.get("tracking") or {}
    target = MlflowTarget(
        uri=tracking_uri(folder, tracking.get("mlflow_uri")),
        experiment=tracking.get("experiment") or "funicular",
        run_name=config.get("name") or folder.path.name,
    )
    records = read_metrics(folder.metrics)
    say(f"{len(records)} steps in {folder.metrics}; MLflow at {public_uri(target.uri)}")
    run = MlflowRun(target, folder)
    if not run.described:
        run.describe()
    values = run.log(records, known=run.points())
    tables = [path for path in sorted(folder.completions.glob("*.jsonl")) if not run.has_table(path)]
    for path in tables:
        run.log_table(path)
    say(f"sent {values} values and {len(tables)} tables of completions that MLflow did not have")
    if run.status == "RUNNING" and not _has_driver(folder):
        run.finish("FINISHED" if folder.model.exists() else "KILLED")
    say(run.link)
    return values + len(tables)


def _has_driver(folder: RunFolder) -> bool:
    try:
        folder.lock().release()
    except RunFolderLocked:
        return True
    return False
