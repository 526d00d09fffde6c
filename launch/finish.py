"""The end of a run: the last evaluation and the model, in an order in which a kill at any point loses nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from funicular.actors.errors import RunStopped
from funicular.launch.evaluate import evaluate
from funicular.launch.plan_errors import report_memory
from funicular.launch.run import Run
from funicular.launch.run_folder import MODEL_STEP, RunFolder


async def finish(run: Run, folder: RunFolder) -> None:
    """Save, evaluate, and write the model beside its final place before it is moved there.

    Raises:
        RunStopped: the last checkpoint could not be completed, or not be copied to `checkpoint.path`.
    """
    every = run.config.checkpoint.every
    if not every or run.step % every:  # else the loop has just saved
        await run.save()
    every = run.config.evaluation.every
    if run.last_evaluation is None or not every or run.step % every:
        run.evaluated(await evaluate(run))
    await run.checkpoints.sealed()
    run.accounts.close("run_finished")
    scratch = folder.path / "model.tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    await run.learners.export(str(scratch))
    (scratch / MODEL_STEP).write_text(json.dumps({"step": run.step}) + "\n")
    shutil.rmtree(folder.model, ignore_errors=True)
    scratch.rename(folder.model)
    report_memory(run, folder)
    run.accounts.ledger.append("finished", step=run.step, reason="max_steps")
    await run.accounts.ledger.durable()
    if run.last_evaluation:
        await run.checkpoints.measured(run.step, run.last_evaluation)
    await run.checkpoints.settle()
    run.report_checkpoints()
    run.tracker.models()
    if missing := run.checkpoints.not_stored:
        raise RunStopped(f"{missing}. The model is in {folder.model}; the same command once more tries the copy again")


def model_of_step(folder: RunFolder, step: int) -> Path | None:
    """The run's model if it is that of `step`; None if there is none, or an older one."""
    return folder.model if folder.model_step == step else None
