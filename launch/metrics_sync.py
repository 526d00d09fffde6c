"""`funicular metrics sync RUN_DIR`: send to MLflow what it does not have of a run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import yaml

from funicular.launch.addresses import public_uri
from funicular.launch.metrics_file import read_lines
from funicular.launch.mlflow_run import MlflowRun, MlflowTarget, tracking_uri
from funicular.launch.run_folder import RunFolder, RunFolderLockedError


def sync_run(run_dir: Path) -> int:
    """The command. Exit status: 0, 1 when MLflow cannot be reached, 2 when `run_dir` is no run folder."""
    try:
        back_fill(run_dir)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception as error:  # MLflow, its store and the network raise types of their own
        print(f"MLflow: {type(error).__name__}: {public_uri(str(error))}", file=sys.stderr)
        return 1
    return 0


def back_fill(run_dir: Path, say: Callable[[str], None] = print) -> int:
    """Complete the MLflow run of `run_dir` from its `metrics.jsonl`, tables, traces and models.

    Of each step the highest attempt counts. Sending twice changes nothing: a value is known by name, step and
    time. The run is made if MLflow never had it, and ended if no driver works in the folder any more.

    Returns:
        How many values, tables, traces and models were sent.

    Raises:
        ValueError: `run_dir` is no run folder.
        Exception: whatever MLflow raises when it cannot be reached.
    """
    folder = RunFolder(path=Path(run_dir).absolute())
    for needed in (folder.metrics, folder.config):
        if not needed.exists():
            raise ValueError(f"{folder.path} has no {needed.name}; expected a run folder, as in runs/NAME")
    config = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    target = MlflowTarget(
        uri=tracking_uri(folder, config["tracking"]["mlflow_uri"]),
        experiment=config["tracking"]["experiment"],
        run_name=config["name"],
    )
    records = read_lines(folder.metrics)  # a live run sends each line with its own time, by which a value is known
    say(f"{len({record['step'] for record in records})} steps in {folder.metrics}; MLflow at {public_uri(target.uri)}")
    run = MlflowRun(target, folder)
    if not run.described:
        run.describe()
    values = run.log(records, known=run.points())
    tables = [path for path in sorted(folder.completions.glob("*.jsonl")) if not run.has_table(path)]
    for path in tables:
        run.log_table(path)
    known = run.traces()
    traces = sum(run.log_traces(path, known) for path in sorted(folder.traces.glob("*.jsonl")))
    models = run.register_models()
    say(
        f"sent {values} values, {len(tables)} tables of completions, {traces} traces and {models} models "
        "that MLflow did not have"
    )
    if run.status == "RUNNING" and not _has_driver(folder):
        run.finish("FINISHED" if folder.model.exists() else "KILLED")
    say(run.link)
    return values + len(tables) + traces + models


def _has_driver(folder: RunFolder) -> bool:
    try:
        folder.lock().release()
    except RunFolderLockedError:
        return True
    return False
