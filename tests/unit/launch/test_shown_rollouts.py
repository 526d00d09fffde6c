"""Which rollouts people get to read, and what stands in their rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from funicular.actors.types import GroupTimes
from funicular.launch import shown_rollouts
from funicular.launch.shown_rollouts import trace_rows
from funicular.rewards.types import Task
from tests.builders import make_group, make_payload
from tests.fakes import fake_run

TIMES = GroupTimes(issued_at=100.0, generated_at=103.0, scored_at=104.5)


@pytest.fixture
def payloads_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A payload stands where its reference would."""

    async def call(payload, *, deadline_s, what):
        return payload

    monkeypatch.setattr(shown_rollouts, "call", call)


def batch(groups: int = 3, size: int = 4):
    for number in range(groups):
        payload = make_payload(f"g{number}", lengths_G=[3] * size)
        payload = replace(payload, texts=tuple(f"text {number}.{member}" for member in range(size)))
        group = make_group(f"g{number}", rewards_G=[0.0, 1.0, None, 1.0], lengths_G=[3] * size, payload=payload)
        yield replace(group, times=TIMES)


def traced(tmp_path: Path, count: int, step: int = 1, seed: int = 0):
    run = fake_run(tmp_path, seed=seed)
    run.config = replace(run.config, tracking=replace(run.config.tracking, traces_per_step=count))
    run.step = step
    return run


@pytest.mark.usefixtures("payloads_at_hand")
async def test_as_many_rollouts_as_asked_are_drawn_anew_each_step_and_alike_when_a_step_is_made_again(
    tmp_path: Path,
) -> None:
    groups = list(batch())

    async def drawn(step: int) -> set[str]:
        rows = await trace_rows(traced(tmp_path, 2, step), groups, trained_from=2)
        return {row.rollout.completion for row in rows}

    by_step = [await drawn(step) for step in range(1, 40)]
    assert {len(texts) for texts in by_step} == {2}
    assert by_step[0] == await drawn(1)
    assert len(set.union(*by_step)) == 12, "every member of every group has its chance"


@pytest.mark.usefixtures("payloads_at_hand")
async def test_a_row_holds_what_its_own_rollout_did(tmp_path: Path) -> None:
    groups = list(batch())
    rows = await trace_rows(traced(tmp_path, 100), groups, trained_from=2)
    assert len(rows) == 12
    void = next(row for row in rows if (row.rollout.group_id, row.member) == ("g1", 2))
    assert (void.rollout.completion, void.rollout.reward, void.rollout.status) == ("text 1.2", None, "infra_error")
    assert (void.staleness, void.issued_at, void.generated_at, void.scored_at) == (2, 100.0, 103.0, 104.5)
    assert void.messages == ({"role": "user", "content": "p"},)


@pytest.mark.usefixtures("payloads_at_hand")
async def test_chat_prompts_keep_their_roles(tmp_path: Path) -> None:
    (group,) = batch(groups=1)
    prompt = ({"role": "system", "content": "be short"}, {"role": "user", "content": "1+1?"})
    task = Task(task_id="t", prompt=prompt, answer="2", verifier="math")
    (row,) = await trace_rows(traced(tmp_path, 1), [replace(group, task=task)], trained_from=0)
    assert row.messages == prompt


@pytest.mark.usefixtures("payloads_at_hand")
async def test_none_are_drawn_where_none_are_asked_for_or_no_loop_rolled_the_group_out(tmp_path: Path) -> None:
    assert await trace_rows(traced(tmp_path, 0), list(batch()), trained_from=0) == []
    given = [replace(group, times=None) for group in batch()]
    assert await trace_rows(traced(tmp_path, 2), given, trained_from=0) == []


async def test_a_lost_payload_costs_its_trace_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from funicular.cluster.calls import DeadlineExceeded

    async def call(payload, *, deadline_s, what):
        if payload.group_id == "g0":
            raise DeadlineExceeded(what, deadline_s)
        return payload

    monkeypatch.setattr(shown_rollouts, "call", call)
    run = traced(tmp_path, 100)
    rows = await trace_rows(run, list(batch()), trained_from=0)
    assert {row.rollout.group_id for row in rows} == {"g1", "g2"}
    assert "g0" in run.tracker.events[0]
