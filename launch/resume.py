"""Where an attempt begins: at the newest snapshot, or at the initial model. The same code after a kill, and after the
loss of the learner."""

from __future__ import annotations

from funicular.actors.errors import RunStopped
from funicular.launch.accounts import Position
from funicular.launch.run import Run

INITIAL = Position(released=0, drawn=0, open={})


async def begin_attempt(run: Run) -> None:
    """Load `run.snapshot`, account for what goes back, and publish the weights that the attempt begins with.

    Versions are never used twice, so the restored weights get the next unused one; steps do repeat. Groups that were
    open at the snapshot are issued again with the same tasks, in the same slots, under new ids.
    """
    snapshot = run.snapshot
    ledger = run.accounts.ledger
    has_history = ledger.next_version > 0
    attempt = ledger.begin_attempt()
    if snapshot:
        try:
            await run.learners.load(snapshot.learner)
        except ValueError as error:  # saved by ranks of another number, stage or kind
            raise RunStopped(f"checkpoint {snapshot.path}: {error}") from error
        run.first_evaluation = snapshot.first_evaluation
    run.step = snapshot.step if snapshot else 0
    position = snapshot.position if snapshot else INITIAL
    if has_history or snapshot:
        run.accounts.refuse_other_data(position)
        await run.checkpoints.forget_after(run.step)  # before the ledger says so: else a kill leaves void checkpoints
        name = snapshot.path.name if snapshot else None
        run.accounts.go_back(position, run.step, name, asked_for=bool(snapshot and snapshot.asked_for))
        await ledger.durable()
        run.tracker.begin_attempt(attempt, run.step)
    run.new_buffer(position.released)
    version = ledger.take_version()
    ledger.append("publishing", version=version, step=run.step)
    await ledger.durable()
    await run.weights.publish(version)
    ledger.append("published", version=version, step=run.step)
    await ledger.durable()
    run.checkpoints.catch_up()
