"""The laws of the loop, over fakes that fail and dawdle."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from funicular.actors.errors import GroupFailed, LearnerLost, PayloadsLost, RunStopped
from funicular.launch.ledger import audit, read_events
from funicular.launch.loop import train
from funicular.launch.task_order import TaskIterator
from tests.fake_store import faulty_store
from tests.fakes import FakeTeachers, fake_run


def staleness(run) -> float:
    return max(metrics["async/staleness_max"] for _, metrics in run.tracker.lines if "async/staleness_max" in metrics)


@pytest.mark.parametrize("bound", [0, 1, 3])
async def test_staleness_never_exceeds_its_bound_and_reaches_it(tmp_path: Path, bound: int) -> None:
    run = fake_run(tmp_path, max_steps=25, max_staleness=bound)
    assert await train(run) == "finished"
    assert staleness(run) == bound


async def test_every_issued_group_is_accounted_for_exactly_once(tmp_path: Path) -> None:
    run = fake_run(tmp_path, max_steps=10, max_staleness=1)
    run.generators.fail = lambda r: GroupFailed("engine_died") if int(r.group_id[1:]) % 5 == 0 else None
    await train(run)
    account = audit(run.accounts.ledger.path)
    assert account.problems == []
    assert sorted({*account.trained, *account.dropped, *account.open}) == sorted(
        event["group"] for event in read_events(run.accounts.ledger.path) if event["event"] == "issued"
    )
    assert len(account.trained) == 20
    assert set(account.dropped.values()) == {"engine_died"}


async def test_a_failed_group_is_tried_again_with_its_task_in_its_slot(tmp_path: Path) -> None:
    calm = fake_run(tmp_path / "calm", max_steps=6)
    await train(calm)
    failing = fake_run(tmp_path / "failing", max_steps=6)
    failed: set[str] = set()

    def fail_each_task_once(request):
        if request.task.task_id in failed:
            return None
        failed.add(request.task.task_id)
        return GroupFailed("generator_died")

    failing.generators.fail = fail_each_task_once
    await train(failing)
    assert failing.learners.trained == calm.learners.trained


async def test_a_slot_that_keeps_failing_is_filled_empty_and_the_run_goes_on(tmp_path: Path) -> None:
    run = fake_run(tmp_path, max_steps=3, algorithm={"max_replacements": 2})
    first = run.accounts._tasks._tasks
    cursed = {first[0].task_id, first[1].task_id}
    run.generators.fail = lambda r: GroupFailed("engine_died") if r.task.task_id in cursed else None
    await train(run)
    assert run.accounts.counts["empty"] <= 2
    assert run.step == 3


async def test_only_empty_batches_stop_the_run_with_the_reason(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    run.generators.fail = lambda r: GroupFailed("prompt_too_long", retry_task=False)
    with pytest.raises(RunStopped, match="prompt_too_long"):
        await train(run)


async def test_void_groups_train_nothing(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    run.scorers.rewards = lambda task, index: None if index else 1.0
    with pytest.raises(RunStopped, match="void"):
        await train(run)
    assert run.learners.trained == []


async def test_dynamic_sampling_replaces_the_task_in_its_slot(tmp_path: Path) -> None:
    run = fake_run(tmp_path, max_steps=4, algorithm={"zero_variance_groups": "replace", "max_replacements": 20})
    run.scorers.rewards = lambda task, index: 1.0 if int(task.answer) % 2 else float(index)
    await train(run)
    trained = [task_id for _, ids in run.learners.trained for task_id in ids]
    assert len(trained) == 8
    assert all(int(task_id[1:]) % 2 == 0 for task_id in trained)
    _, last = run.tracker.lines[-1]
    assert last["groups/dropped/zero_variance"] == last["groups/dropped"] > 0


async def test_what_waits_behind_a_slow_head_is_measured(tmp_path: Path) -> None:
    run = fake_run(tmp_path, max_steps=2, max_staleness=1)
    generate, slow = run.generators.generate, run.accounts._tasks._tasks[0].task_id

    async def hold_one_task_back(request):
        while request.task.task_id == slow and len(run.buffer._held) < 3:
            await asyncio.sleep(0.001)
        return await generate(request)

    run.generators.generate = hold_one_task_back
    order = TaskIterator(run.accounts._tasks._tasks, 0)
    run.accounts._tasks.position = next(i for i in range(64) if order.next().task_id == slow)  # it comes first
    await train(run)
    _, first = run.tracker.lines[0]
    assert first["async/filled_ahead"] == 2
    assert first["async/head_wait_s"] > 0


async def test_a_teacher_scores_every_group_beside_the_scorer(tmp_path: Path) -> None:
    run = fake_run(tmp_path, max_steps=3)
    run.teachers = FakeTeachers()
    taught: list[tuple[object, object]] = []
    run.learners.before_step = lambda step, groups: taught.extend((g.payload, g.teacher_payload) for g in groups)
    await train(run)
    assert len(taught) == 6
    assert all(scores == f"scores of {payload}" for payload, scores in taught)
    metrics = run.tracker.lines[-1][1]
    assert (metrics["time/teacher_s"], metrics["teachers/serving"]) == (0.5, 1.0)


async def test_a_group_that_no_teacher_could_score_is_tried_again_and_a_missing_number_voids(tmp_path: Path) -> None:
    run = fake_run(tmp_path, max_steps=4)
    run.teachers = FakeTeachers()

    def fail_some(group_id: str) -> tuple[bool, ...]:
        if int(group_id[1:]) % 3 == 0:
            raise GroupFailed("teacher_died")
        return (True, int(group_id[1:]) % 3 != 1)

    run.teachers.finite = fail_some
    await train(run)
    account = audit(run.accounts.ledger.path)
    assert account.problems == []
    assert set(account.dropped.values()) == {"teacher_died", "void"}
    assert len(account.trained) == 8
    assert all(int(group_id[1:]) % 3 == 2 for group_id in account.trained)


async def test_lost_payloads_are_drawn_again_before_the_step(tmp_path: Path) -> None:
    run = fake_run(tmp_path, max_steps=3)
    lost: list[str] = []

    def lose_once(step, groups):
        if not lost:
            lost.append(groups[0].group_id)
            raise PayloadsLost((groups[0].group_id,))

    run.learners.before_step = lose_once
    await train(run)
    account = audit(run.accounts.ledger.path)
    assert account.problems == []
    assert account.dropped == {lost[0]: "payload_lost"}
    assert len(account.trained) == 6


async def test_a_lost_learner_goes_back_to_its_snapshot_and_trains_the_same_tasks(tmp_path: Path) -> None:
    calm = fake_run(tmp_path / "calm", max_steps=7)
    await train(calm)
    run = fake_run(tmp_path / "lossy", max_steps=7, checkpoint_every=2)

    def die_once(step, groups):
        if step == 4 and run.learners.restarts == 0:
            raise LearnerLost("rank 1 died")

    run.learners.before_step = die_once
    assert await train(run) == "finished"
    assert run.learners.restarts == 1
    assert run.learners.trained == calm.learners.trained
    assert run.weights.published == sorted(set(run.weights.published)), "versions never repeat"
    account = audit(run.accounts.ledger.path)
    assert account.problems == []
    assert [list(ids) for _, ids in sorted(account.trained_tasks.items())] == [ids for _, ids in calm.learners.trained]


async def test_a_learner_that_always_dies_spends_the_budget(tmp_path: Path) -> None:
    run = fake_run(tmp_path, max_restarts=2)

    def die(step, groups):
        raise LearnerLost("rank 0 died")

    run.learners.before_step = die
    with pytest.raises(RuntimeError, match=r"(?s)max_restarts=2.*(rank 0 died.*){3}"):
        await train(run)


@pytest.mark.parametrize("bound", [0, 2])
async def test_stop_saves_and_the_resumed_run_trains_what_an_uninterrupted_one_does(tmp_path: Path, bound: int) -> None:
    calm = fake_run(tmp_path / "calm", max_steps=9, max_staleness=bound)
    await train(calm)
    first = fake_run(tmp_path / "stopped", max_steps=9, max_staleness=bound)

    def stop_at_four(step, groups):
        if step == 4:
            first.stop.set()

    first.learners.before_step = stop_at_four
    assert await train(first) == "stopped"
    assert first.step == 4
    second = fake_run(tmp_path / "stopped", max_steps=9, max_staleness=bound)
    assert await train(second) == "finished"
    assert second.learners.trained == calm.learners.trained
    assert audit(second.accounts.ledger.path).problems == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kill_after=st.integers(min_value=0, max_value=120),
    staleness=st.integers(0, 2),
    every=st.sampled_from([0, 1, 3]),
    power_cut=st.booleans(),
)
def test_killed_after_any_event_the_run_resumes_and_accounts_for_every_group(
    tmp_path_factory: pytest.TempPathFactory, kill_after: int, staleness: int, every: int, power_cut: bool
) -> None:
    """The kill is a BaseException out of the ledger after its n-th event: nothing may clean up behind it.

    A power cut takes besides what was not brought to disk.
    """
    folder = tmp_path_factory.mktemp("killed")
    calm = fake_run(folder / "calm", max_steps=6, max_staleness=staleness)
    asyncio.run(train(calm))

    class Killed(BaseException):
        pass

    run = fake_run(folder / "run", max_steps=6, max_staleness=staleness, checkpoint_every=every)
    append = run.accounts.ledger.append
    count = 0

    def append_until_killed(event, **fields):
        nonlocal count
        if count >= kill_after:
            raise Killed
        count += 1
        append(event, **fields)

    run.accounts.ledger.append = append_until_killed
    try:
        asyncio.run(train(run))
    except BaseException as error:
        if not isinstance(error, (Killed, BaseExceptionGroup)):
            raise
    if power_cut:
        os.truncate(run.accounts.ledger.path, run.accounts.ledger.on_disk)
    asyncio.run(run.checkpoints.settle())  # its thread outlives this kill; test_checkpoint_crashes.py kills that too
    resumed = fake_run(folder / "run", max_steps=6, max_staleness=staleness, checkpoint_every=every)
    asyncio.run(train(resumed))
    account = audit(folder / "run" / "ledger.jsonl")
    assert account.problems == []
    assert [list(ids) for _, ids in sorted(account.trained_tasks.items())] == [ids for _, ids in calm.learners.trained]
    assert set(run.weights.published).isdisjoint(resumed.weights.published), "a version was used twice"
    asked, again = ({request.group_id for request in r.generators.requests} for r in (run, resumed))
    assert asked.isdisjoint(again), "a group id was used twice"


async def test_a_checkpoint_never_knows_more_than_the_ledger_on_disk(tmp_path: Path) -> None:
    """Else it could not be resumed from after a power cut: its copy of the ledger would be another history."""
    run = fake_run(tmp_path, max_steps=6, max_staleness=2, checkpoint_every=1)
    save, lacking = run.checkpoints.save, []

    async def watched_save(*arguments, ledger, **options):
        lacking.append(ledger.stat().st_size - run.accounts.ledger.on_disk)
        await save(*arguments, ledger=ledger, **options)

    run.checkpoints.save = watched_save
    await train(run)
    assert lacking == [0] * 6


async def test_a_checkpoint_that_cannot_be_completed_stops_the_run_at_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, step: int) -> None:
        raise OSError(28, "No space left on device")

    run = fake_run(tmp_path, max_steps=500, checkpoint_every=2)
    monkeypatch.setattr("funicular.launch.checkpoints.write_manifest", full)
    with pytest.raises(RunStopped, match=r"step_000002 could not be completed: .*No space left"):
        await train(run)
    assert run.step <= 4


async def test_a_store_that_is_away_for_a_while_does_not_stop_training(tmp_path: Path) -> None:
    away = True

    def watch(operation: str, path: str) -> None:
        if away and "step_000002" in path:
            raise OSError("no route to host")

    run = fake_run(
        tmp_path,
        max_steps=6,
        checkpoint_every=2,
        store=faulty_store(tmp_path / "store", watch),
        checkpoint_deadline_s=0.5,
    )
    assert await train(run) == "finished"
    away = False
    await run.checkpoints.settle()
    run.report_checkpoints()
    assert run.checkpoints.store is not None
    assert run.checkpoints.store.steps() == [4, 6]
    events = "\n".join(run.tracker.events)
    assert "step_000002 to" in events
    assert "upload given up" in events
    assert any(metrics.get("checkpoint/store_failures", 0) >= 1 for _, metrics in run.tracker.lines)


async def test_a_lost_learner_goes_back_to_a_checkpoint_that_is_still_being_uploaded(tmp_path: Path) -> None:
    go = threading.Event()

    def slow(operation: str, path: str) -> None:
        assert go.wait(60)

    run = fake_run(tmp_path, max_steps=5, checkpoint_every=2, store=faulty_store(tmp_path / "store", slow))

    def die_once(step, groups):
        if step == 4 and run.learners.restarts == 0:
            threading.Timer(0.3, go.set).start()
            raise LearnerLost("rank 0 died")

    run.learners.before_step = die_once
    assert await train(run) == "finished"
    assert [step for step, _ in run.learners.trained] == [1, 2, 3, 4, 5]
    await run.checkpoints.settle()
    assert audit(run.accounts.ledger.path).problems == []
    assert any(event.startswith("attempt 2 from 2") for event in run.tracker.events)
