"""Which pool a scorer asks next when one fails, without Ray's processes."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from ray.exceptions import ActorUnschedulableError, GetTimeoutError, OutOfMemoryError

from funicular.actors import pool_judge
from funicular.actors.pool_judge import INLINE_BYTES, PoolJudge, PoolsDead
from funicular.rewards.sandbox.config import SandboxConfig
from funicular.rewards.sandbox.types import Judgement, Outcome, Program, StdioCase, StdioTests

VERDICT = Judgement(outcome=Outcome.OK, tests_passed=1, tests_run=1, tests_total=1)
PROGRAM = Program(source="print(1)")


class FakePool:
    """Answers with a verdict, or with what it is told to raise; or late, or never."""

    def __init__(self) -> None:
        self.raises: Exception | None = None
        self.late = 0
        """How often a wait for it ends before it answers."""
        self.alive = True
        self.asked = 0
        self.judge = self
        self.pulse = FakePulse(self)

    def remote(self, *args: Any, **keywords: Any) -> FakePool:
        self.asked += 1
        return self


class FakePulse:
    """The method `pulse` of a pool, and a call of it."""

    def __init__(self, pool: FakePool) -> None:
        self.pool = pool
        self.felt = 0

    def options(self, **options: Any) -> FakePulse:
        return self

    def remote(self) -> FakePulse:
        self.felt += 1
        return self


class FakeRay:
    """`ray.get`, `ray.wait`, `ray.put` and the context of a worker."""

    def get(self, call: FakePool | FakePulse, timeout: float) -> list[Judgement]:
        if isinstance(call, FakePulse):
            if not call.pool.alive:
                raise GetTimeoutError("no pulse")
            return []
        if call.raises is not None:
            raise call.raises
        return [VERDICT]

    def wait(self, calls: list[FakePool], timeout: float) -> tuple[list[FakePool], list[FakePool]]:
        if calls[0].late:
            calls[0].late -= 1
            return [], calls
        return calls, []

    def put(self, pickled: bytes) -> object:
        return object()

    def get_runtime_context(self) -> FakeRay:
        return self

    def get_node_id(self) -> str:
        return "here"


@pytest.fixture(autouse=True)
def _ray(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay()
    for name in ("get", "wait", "put", "get_runtime_context"):
        monkeypatch.setattr(ray, name, getattr(fake, name))


def judge_over(*pools: tuple[str, FakePool]) -> PoolJudge:
    return PoolJudge(pools, client="scorer-0", run="r", config=SandboxConfig())


def sized(length: int) -> StdioTests:
    return StdioTests(cases=(StdioCase(stdin="x" * length, stdout=""),))


@pytest.mark.parametrize("error", [ActorUnschedulableError("its node is gone"), OutOfMemoryError("killed")])
def test_any_failure_of_a_pool_sends_the_batch_to_the_next(error: Exception) -> None:
    near, far = FakePool(), FakePool()
    near.raises = error
    judge = judge_over(("here", near), ("there", far))
    assert judge([PROGRAM], sized(1)) == [VERDICT]
    assert (near.asked, far.asked) == (1, 1)
    far.raises = error
    with pytest.raises(PoolsDead, match="no sandbox pool answers"):
        judge([PROGRAM], sized(1))


def test_a_pool_that_did_not_answer_in_time_is_asked_last_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = FakePool(), FakePool()
    judge = judge_over(("here", near), ("there", far))
    near.raises = GetTimeoutError("late")
    judge([PROGRAM], sized(1))
    near.raises = None
    judge([PROGRAM], sized(1))
    assert (near.asked, far.asked) == (1, 2)
    judge._asked_last_until[near] = 0.0
    judge([PROGRAM], sized(1))
    assert (near.asked, far.asked) == (2, 2)


def test_pools_that_left_are_forgotten_and_those_that_joined_are_asked() -> None:
    near, far, late = FakePool(), FakePool(), FakePool()
    judge = judge_over(("here", near), ("there", far))
    near.raises = far.raises = GetTimeoutError("late")
    with pytest.raises(PoolsDead):
        judge([PROGRAM], sized(1))
    judge.use([("there", far), ("elsewhere", late)])
    assert set(judge._asked_last_until) == {far}
    assert judge([PROGRAM], sized(1)) == [VERDICT]
    assert (near.asked, far.asked, late.asked) == (1, 1, 1), "what had answered late is asked last"


def test_a_pool_that_is_slow_but_alive_is_waited_for() -> None:
    near, far = FakePool(), FakePool()
    near.late = 3
    assert judge_over(("here", near), ("there", far))([PROGRAM], sized(1)) == [VERDICT]
    assert (near.asked, near.pulse.felt, far.asked) == (1, 3, 0)


def test_a_pool_without_a_sign_of_life_costs_a_batch_two_pulses_and_is_asked_last() -> None:
    near, far = FakePool(), FakePool()
    near.late, near.alive = 1000, False
    judge = judge_over(("here", near), ("there", far))
    assert judge([PROGRAM], sized(1)) == [VERDICT]
    assert (near.asked, near.pulse.felt, far.asked) == (1, 1, 1)
    assert judge([PROGRAM], sized(1)) == [VERDICT]
    assert (near.asked, far.asked) == (1, 2)


def test_the_last_pool_is_waited_for_as_long_as_a_batch_may_take() -> None:
    only = FakePool()
    only.late, only.alive = 1000, False
    assert judge_over(("here", only))([PROGRAM], sized(1)) == [VERDICT]
    assert only.pulse.felt == 0


def test_the_test_sets_that_a_scorer_keeps_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_judge, "KEPT_MIB", 1)
    judge = judge_over(("here", FakePool()))
    first = judge._pack(sized(INLINE_BYTES))
    assert judge._pack(sized(INLINE_BYTES)).reference is first.reference
    for more in range(1, 30):
        judge._pack(sized(INLINE_BYTES + more))
    assert sum(size for _, size in judge._references.values()) <= 1 << 20
    assert judge._pack(sized(INLINE_BYTES)).reference is not first.reference
    assert judge._pack(sized(4 << 20)).reference is not None, "one alone may be larger"
