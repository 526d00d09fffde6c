"""The pool without Ray: real slots, test sets fetched once, and clients that give up."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator

import pytest

from funicular.actors.sandbox_pool import PackedTests, SandboxPool
from funicular.rewards.sandbox.config import SandboxConfig
from funicular.rewards.sandbox.cores import usable_cores
from funicular.rewards.sandbox.isolation import IsolationUnavailable
from funicular.rewards.sandbox.slot import native
from funicular.rewards.sandbox.types import Outcome, Program, StdioCase, StdioTests

pytestmark = pytest.mark.integration

ECHO = Program(source="print(input())")
SPIN = Program(source="while True: pass")
PATIENCE_S = 60.0


class FakeStore:
    """Test sets by reference, as the object store holds them."""

    def __init__(self) -> None:
        self.pickles: dict[str, bytes] = {}
        self.fetched: list[str] = []

    def put(self, name: str) -> PackedTests:
        tests = StdioTests(cases=(StdioCase(stdin=name, stdout=name),))
        self.pickles[name] = pickle.dumps(tests)
        return PackedTests(key=name, size=len(self.pickles[name]), reference=name)

    def fetch(self, reference: str) -> bytes:
        self.fetched.append(reference)
        return self.pickles[reference]


@pytest.fixture(scope="module")
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture(scope="module")
def pool(store: FakeStore) -> Iterator[SandboxPool]:
    """One for all tests, as a node has it."""
    pool = SandboxPool(SandboxConfig(slots=1, cpu_s=0.2), slots=1, fetch=store.fetch)
    yield pool
    if pool._sandbox is not None:
        pool._sandbox.close()


def judge(pool: SandboxPool, tests: PackedTests, *programs: Program, client: str = "a") -> list[Outcome]:
    verdicts = pool.judge(programs, tests, client=client, run="r", deadline_s=PATIENCE_S)
    return [verdict.outcome for verdict in verdicts]


def test_the_slots_start_with_the_first_call_and_the_report_says_what_they_are(pool: SandboxPool) -> None:
    assert pool._sandbox is None
    report = pool.start("python")
    assert (report.slots, report.level, report.stats.submissions) == (1, report.stats.level, 0)
    assert pool.report().life == report.life


def test_a_test_set_is_fetched_once(pool: SandboxPool, store: FakeStore) -> None:
    one, two = store.put("1"), store.put("2")
    for tests in (one, two, one, one):
        assert judge(pool, tests, ECHO) == [Outcome.OK]
    assert store.fetched == ["1", "2"]


def test_a_clients_next_batch_takes_the_place_of_the_one_that_it_gave_up(pool: SandboxPool, store: FakeStore) -> None:
    tests, given_up = store.put("1"), []
    thread = threading.Thread(target=lambda: given_up.extend(judge(pool, tests, *[SPIN] * 30)))
    thread.start()
    while not pool.report().stats.waiting:
        pass
    assert judge(pool, tests, ECHO) == [Outcome.OK]
    thread.join(PATIENCE_S)
    assert len(given_up) == 30
    assert given_up[-1] is Outcome.INFRA_ERROR


def test_slots_are_never_more_than_the_cores_that_the_process_may_use_unless_the_recipe_says_so() -> None:
    assert SandboxPool(SandboxConfig(), slots=10_000)._config.slots == usable_cores()
    assert SandboxPool(SandboxConfig(), slots=1)._config.slots == 1
    assert SandboxPool(SandboxConfig(slots=30), slots=15)._config.slots == 15


def test_an_unreachable_level_is_refused_by_start_and_not_by_the_actors_constructor() -> None:
    pool = SandboxPool(SandboxConfig(isolation="L1", min_level="L3"), slots=1)
    with pytest.raises(IsolationUnavailable, match="min_level"):
        pool.start("python")


def test_a_language_without_its_tools_is_refused_at_the_start(
    pool: SandboxPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "TOOLS", {"cpp": ("/usr/bin/there-is-no-such-compiler",)})
    with pytest.raises(ValueError, match="there-is-no-such-compiler"):
        pool.start("cpp")
