"""`funicular train`: from a loaded recipe to a trained model in the run folder."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Literal

from funicular.actors.errors import RunStopped
from funicular.cluster.session import connect, disconnect
from funicular.cluster.supervise import RestartBudgetSpent
from funicular.launch.checkpoints import Checkpoints, Snapshot, read_snapshot
from funicular.launch.config import Config
from funicular.launch.ledger import Ledger
from funicular.launch.models import resolve_model
from funicular.launch.progress import Progress
from funicular.launch.progress_text import RunSummary
from funicular.launch.recipe import LoadedRecipe
from funicular.launch.run_folder import RunFolder, RunFolderLockedError
from funicular.launch.tasks import TaskSet, load_tasks
from funicular.launch.tracking import Tracker, open_tracker
from funicular.rewards.runner import FunctionRunner

FINISHED, FAILED, WRONG_INPUT = 0, 1, 2
STOPPED = 128 + signal.SIGTERM
"""As a shell says of a process that SIGTERM ended: a scheduler that retries failed jobs then resumes the run."""


class ResumeError(ValueError):
    """`resume` and the run folder do not go together."""


def train(loaded: LoadedRecipe) -> int:
    """Train as the recipe says; the exit status."""
    config = loaded.config
    progress = Progress(config.max_steps)
    try:
        folder = RunFolder.create(config.run_dir or Path("runs") / config.name)
        with folder.lock():
            _log_to(folder)
            return _train_in(folder, loaded, progress)
    except (ValueError, RunFolderLockedError) as error:  # ValueError is how every part refuses what a user gave
        logging.getLogger("funicular").info("wrong input", exc_info=True)
        progress.close()
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    finally:
        progress.close()


def _train_in(folder: RunFolder, loaded: LoadedRecipe, progress: Progress) -> int:
    config = loaded.config
    began = time.monotonic()
    snapshot = _snapshot(config, folder)
    if snapshot and snapshot.step >= config.max_steps and folder.model.is_dir():
        print(f"{folder.path}: all {config.max_steps} steps are done; the model is in {folder.model}")
        return FINISHED
    tasks = load_tasks(config.data, config.reward.verifier, config.seed)
    _report(tasks, progress)
    _try_reward_functions(loaded)
    model_folder = resolve_model(config.model.path, progress.event)
    folder.config.write_text(loaded.text)
    ledger = Ledger(folder.ledger)
    tracker = open_tracker(folder, config.tracking, progress, run_name=config.name, attempt=ledger.attempt + 1)
    progress.event(f"run folder {folder.path}")
    status: Literal["finished", "failed", "killed"] = "failed"
    outcome: _Outcome | None = None
    try:
        outcome = asyncio.run(
            _run(loaded, folder, tasks, model_folder, snapshot, tracker, progress, ledger), debug=False
        )
        status = "finished" if outcome.finished else "killed"
    except (RunStopped, RestartBudgetSpent) as error:
        progress.error(f"the run stopped: {error}")
    finally:
        tracker.finish(status)
        ledger.close()
        progress.summary(_summary(outcome, status, folder, tracker, time.monotonic() - began))
    return {"finished": FINISHED, "killed": STOPPED, "failed": FAILED}[status]


class _Outcome:
    """What a run that ended in order has to say."""

    def __init__(self, *, finished: bool, steps: int, before: float | None, after: float | None) -> None:
        self.finished = finished
        self.steps = steps
        self.before = before
        self.after = after


async def _run(
    loaded: LoadedRecipe,
    folder: RunFolder,
    tasks: TaskSet,
    model_folder: Path,
    snapshot: Snapshot | None,
    tracker: Tracker,
    progress: Progress,
    ledger: Ledger,
) -> _Outcome:
    from funicular.launch.build import build, demand
    from funicular.launch.evaluate import evaluate
    from funicular.launch.loop import train as loop

    config = loaded.config
    with progress.phase("starting Ray"):
        session = connect(config.cluster, demand(config))
    try:
        with progress.phase(f"starting {config.generator.count} generators and {config.learner.ranks} learner ranks"):
            run = await build(
                config,
                folder=folder,
                recipe_folder=loaded.folder,
                tasks=tasks,
                model_folder=model_folder,
                use_gpu=session.gpus > 0,
                tracker=tracker,
                ledger=ledger,
                snapshot=snapshot,
            )
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, run.stop.set)
        finished = await loop(run) == "finished"
        if finished:
            every = config.evaluation.every
            if not every or run.step % every:  # else the loop has just done it
                run.last_evaluation = await evaluate(run)
            run.accounts.close("run_finished")
            ledger.append("finished", step=run.step, reason="max_steps")
            with progress.phase(f"writing the model to {folder.model}"):
                await run.learners.export(str(folder.model))
            await run.save()
        return _Outcome(
            finished=finished,
            steps=run.step,
            before=_pass_at_1(run.first_evaluation),
            after=_pass_at_1(run.last_evaluation),
        )
    finally:
        disconnect()


def _try_reward_functions(loaded: LoadedRecipe) -> None:
    """Load them once here: one that cannot be loaded must not first show as a scorer that dies.

    Raises:
        RewardLoadError: names the function and the error.
    """
    runner = FunctionRunner(loaded.config.reward, loaded.folder)
    try:
        runner.start()
    finally:
        runner.close()


def _snapshot(config: Config, folder: RunFolder) -> Snapshot | None:
    """What the run continues from, as `resume` says.

    Raises:
        ResumeError: resume=never in a folder that has a run.
        CheckpointError: the checkpoint that was asked for is not whole.
    """
    if config.resume == "auto":
        return Checkpoints(folder.checkpoints, config.checkpoint.keep_last).newest()
    if config.resume != "never":
        return read_snapshot(Path(config.resume))
    if folder.ledger.exists():
        raise ResumeError(
            f"resume=never, but {folder.path} holds a run (ledger.jsonl); give another name=... or run_dir=..., "
            "delete that folder, or continue the run with resume=auto"
        )
    return None


def _summary(outcome: _Outcome | None, status: str, folder: RunFolder, tracker: Tracker, seconds: float) -> RunSummary:
    return RunSummary(
        status=status,
        steps=outcome.steps if outcome else 0,
        seconds=seconds,
        run_dir=folder.path,
        model=folder.model if folder.model.is_dir() else None,
        pass_at_1_before=outcome.before if outcome else None,
        pass_at_1_after=outcome.after if outcome else None,
        mlflow=tracker.link,
        mlflow_dropped=tracker.mlflow_dropped,
    )


def _report(tasks: TaskSet, progress: Progress) -> None:
    report = tasks.report
    progress.event(
        f"{len(tasks.train)} training tasks, {len(tasks.held_out)} held out; "
        f"{report.duplicates_removed} duplicates removed, {len(report.contaminated)} held-out tasks also in training"
    )


def _pass_at_1(evaluation: object) -> float | None:
    from collections.abc import Mapping

    return evaluation.get("eval/held_out/pass_at_1") if isinstance(evaluation, Mapping) else None


def _log_to(folder: RunFolder) -> None:
    """Warnings of our own parts go to the run folder; the terminal shows progress."""
    handler = logging.FileHandler(folder.logs / "driver.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("funicular")
    root.addHandler(handler)
    root.setLevel(os.environ.get("FUNICULAR_LOG_LEVEL", "INFO"))
    root.propagate = False
