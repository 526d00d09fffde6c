"""`funicular train`: from a loaded recipe to a trained model in the run folder."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import yaml

from funicular.actors.errors import LearnerLost, RunStopped
from funicular.cluster.calls import DeadlineExceeded
from funicular.cluster.session import connect, disconnect
from funicular.cluster.supervise import RestartBudgetSpent
from funicular.launch.checkpoint_store import open_store
from funicular.launch.checkpoints import Checkpoints, Snapshot
from funicular.launch.config import Config
from funicular.launch.finish import finish, model_of_step
from funicular.launch.health import check_health
from funicular.launch.image_checks import refuse_unfit_for_images
from funicular.launch.ledger import Ledger
from funicular.launch.live_gauges import told_live
from funicular.launch.local_scoring import check_loading
from funicular.launch.models import resolve_model
from funicular.launch.native_types import changed_types
from funicular.launch.prepared import Prepared
from funicular.launch.progress import Progress
from funicular.launch.progress_text import RunSummary
from funicular.launch.recipe import LoadedRecipe
from funicular.launch.resume_point import find_snapshot
from funicular.launch.run import Run
from funicular.launch.run_folder import RunFolder, RunFolderLockedError
from funicular.launch.tasks import load_tasks
from funicular.launch.teacher_folder import resolve_teacher
from funicular.launch.tracking import Tracker, open_tracker
from funicular.rewards.sandbox.isolation import IsolationUnavailable

FINISHED, FAILED, WRONG_INPUT = 0, 1, 2
STOPPED = 128 + signal.SIGTERM
"""As a shell says of a process that SIGTERM ended: a scheduler that retries failed jobs then resumes the run."""
STOPS = (RunStopped, RestartBudgetSpent, LearnerLost, DeadlineExceeded)
"""What ends a run with a reason; anything else is a fault of ours and shows its traceback."""

log = logging.getLogger(__name__)


class WrongInput(ValueError):
    """What the user gave cannot be run; found before the first step."""


def train(loaded: LoadedRecipe) -> int:
    """Train as the recipe says; the exit status."""
    progress = Progress(loaded.config.max_steps)
    try:
        folder = RunFolder.create(loaded.config.run_dir or Path("runs") / loaded.config.name)
        with folder.lock():
            _log_to(folder)
            return _train_in(folder, loaded, progress)
    except (WrongInput, RunFolderLockedError) as error:
        progress.close()
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    finally:
        progress.close()


def _train_in(folder: RunFolder, loaded: LoadedRecipe, progress: Progress) -> int:
    config = loaded.config
    began = time.monotonic()
    try:
        checkpoints = _open_checkpoints(config, folder, progress)
        snapshot = find_snapshot(config, folder, checkpoints)
        if snapshot and snapshot.step >= config.max_steps and model_of_step(folder, snapshot.step):
            return _already_done(config, folder, checkpoints)
        prepared = _prepare(folder, loaded, snapshot, checkpoints, progress)
    except ValueError as error:  # how every part refuses what a user gave
        log.info("wrong input", exc_info=True)
        raise WrongInput(str(error)) from error
    if snapshot and folder.config.exists():
        for sentence in changed_types(yaml.safe_load(folder.config.read_text(encoding="utf-8")), config):
            progress.event(sentence)
    folder.config.write_text(loaded.text)
    ledger = Ledger(folder.ledger)
    tracker = open_tracker(folder, config.tracking, progress, run_name=config.name, attempt=ledger.attempt + 1)
    progress.event(f"run folder {folder.path}")
    run: list[Run] = []  # filled when the parts are started: the summary of a failed run says how far it came
    status: Literal["finished", "failed", "killed"] = "failed"
    try:
        finished = asyncio.run(_run(config, prepared, tracker, progress, ledger, run))
        status = "finished" if finished else "killed"
    except STOPS as error:
        log.error("the run stopped", exc_info=True)
        progress.error(f"the run stopped: {error}")
    finally:
        tracker.finish(status)
        ledger.close()
        progress.summary(_summary(run[0] if run else None, status, folder, tracker, time.monotonic() - began))
    return {"finished": FINISHED, "killed": STOPPED, "failed": FAILED}[status]


def _open_checkpoints(config: Config, folder: RunFolder, progress: Progress) -> Checkpoints:
    """The run's checkpoints; a store that cannot be written to is found here, before anything expensive is started."""
    path = config.checkpoint.path
    checkpoints = Checkpoints(folder.checkpoints, config.checkpoint, open_store(path, config.name) if path else None)
    if checkpoints.store:
        with progress.phase(f"looking at {checkpoints.store.shown}"):
            checkpoints.refuse_unwritable()
    return checkpoints


def _already_done(config: Config, folder: RunFolder, checkpoints: Checkpoints) -> int:
    """Nothing is left to train; what may be left is a copy of the last checkpoint."""

    async def copy() -> None:
        checkpoints.catch_up()
        await checkpoints.settle()

    try:
        asyncio.run(copy())
    except RunStopped as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    if checkpoints.not_stored:
        print(f"error: {checkpoints.not_stored}", file=sys.stderr)
        return FAILED
    print(
        f"{folder.path}: all {config.max_steps} steps are done; the model is in {folder.model}. "
        "To train again give another name=..., to go on a higher max_steps=..."
    )
    return FINISHED


def _prepare(
    folder: RunFolder,
    loaded: LoadedRecipe,
    snapshot: Snapshot | None,
    checkpoints: Checkpoints,
    progress: Progress,
) -> Prepared:
    """Everything that can be wrong with the input and is cheap to find out.

    Raises:
        ValueError: names what is wrong.
    """
    config = loaded.config
    reward = config.reward
    tasks = load_tasks(config.data, reward.verifier, config.seed, verifier_options=reward.verifier_options)
    report = tasks.report
    progress.event(
        f"{len(tasks.train)} training tasks, {len(tasks.held_out)} held out; "
        f"{report.duplicates_removed} duplicates removed, {len(report.contaminated)} held-out tasks also in training"
    )
    check_loading(reward, loaded.folder)
    if reward.health_tasks:
        chosen = tasks.health_tasks(reward.health_tasks)
        try:
            progress.event(str(check_health(config, loaded.folder, chosen)))
        except IsolationUnavailable as error:
            hint = "Only the health check needs a sandbox on this machine; reward.health_tasks=0 trains without it."
            raise IsolationUnavailable(f"{error}\n{hint}") from error
    model_folder = resolve_model(config.model.path, progress.event)
    refuse_unfit_for_images(config, (*tasks.train, *tasks.held_out), model_folder)
    return Prepared(
        folder=folder,
        recipe_folder=loaded.folder,
        tasks=tasks,
        model_folder=model_folder,
        snapshot=snapshot,
        teacher_folder=resolve_teacher(config, model_folder, progress.event),
        store=checkpoints.store,
    )


async def _run(
    config: Config, prepared: Prepared, tracker: Tracker, progress: Progress, ledger: Ledger, started: list[Run]
) -> bool:
    """True when all steps are done and the model is written; False when the run was asked to stop."""
    from funicular.launch.build import build, demand
    from funicular.launch.loop import train as loop

    try:
        try:
            with progress.phase("starting Ray"):
                session = connect(config.cluster, demand(config))
            parts = f"{config.generator.count} generators and {config.learner.ranks} learner ranks"
            with progress.phase(f"starting {parts}"):
                run = await build(
                    config,
                    prepared,
                    use_gpu=session.use_gpu,
                    roles=session.roles,
                    tracker=tracker,
                    ledger=ledger,
                )
        except ValueError as error:
            log.info("wrong input", exc_info=True)
            raise WrongInput(str(error)) from error
        started.append(run)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, run.stop.set)
        async with told_live(run):
            if await loop(run) != "finished":
                with progress.phase("completing the checkpoint"):
                    await run.checkpoints.settle()
                run.report_checkpoints()
                return False
            with progress.phase(f"last evaluation, and the model to {prepared.folder.model}"):
                await finish(run, prepared.folder)
            return True
    finally:
        if started:
            await _complete_checkpoint(started[0], progress)
        disconnect()


async def _complete_checkpoint(run: Run, progress: Progress) -> None:
    """Let what is under way end, also when the run fails: the steps of the last checkpoint are not lost."""
    try:
        await run.checkpoints.settle()
        run.report_checkpoints()
    except RunStopped as error:  # said besides what ends the run
        log.error("the checkpoint under way", exc_info=True)
        progress.error(str(error))


def _summary(run: Run | None, status: str, folder: RunFolder, tracker: Tracker, seconds: float) -> RunSummary:
    return RunSummary(
        status=status,
        steps=run.step if run else 0,
        seconds=seconds,
        run_dir=folder.path,
        model=model_of_step(folder, run.step) if run else None,
        pass_at_1_before=_pass_at_1(run.first_evaluation) if run else None,
        pass_at_1_after=_pass_at_1(run.last_evaluation) if run else None,
        mlflow=tracker.link,
        mlflow_dropped=tracker.mlflow_dropped,
    )


def _pass_at_1(evaluation: Mapping[str, float] | None) -> float | None:
    return evaluation.get("eval/held_out/pass_at_1") if evaluation else None


def _log_to(folder: RunFolder) -> None:
    """Warnings of our own parts go to the run folder; the terminal shows progress."""
    handler = logging.FileHandler(folder.logs / "driver.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("funicular")
    root.addHandler(handler)
    root.setLevel(os.environ.get("FUNICULAR_LOG_LEVEL", "INFO"))
    root.propagate = False
