"""Stand-ins that inject faults and delays, for the laws of the loop. Nothing here computes a model."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from funicular.actors.buffer import SlotBuffer
from funicular.actors.buffers import RolloutBuffer
from funicular.actors.config import AlgorithmConfig
from funicular.actors.errors import GroupFailed
from funicular.actors.readings import Reading
from funicular.actors.scorer import ScoreReport
from funicular.actors.types import GenerationRecord, GenerationRequest, ScoredGroup, StepResult, TeacherRecord
from funicular.actors.weight_sync import PublishReport
from funicular.cluster.supervise import RestartBudget
from funicular.launch.accounts import Accounts
from funicular.launch.checkpoint_store import Store
from funicular.launch.checkpoints import Checkpoints
from funicular.launch.config import CheckpointConfig, Config, EvaluationConfig, TrackingConfig
from funicular.launch.ledger import Ledger
from funicular.launch.run import Run
from funicular.launch.task_order import TaskIterator
from funicular.rewards.types import Status, Task, Verdict


def fake_tasks(count: int) -> list[Task]:
    return [Task(task_id=f"t{i}", prompt=f"task {i}", answer=str(i), verifier="exact_number") for i in range(count)]


class FakeMethod:
    """`actor.method.remote(...)` without Ray: a task on this event loop."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method

    def remote(self, *args: Any) -> asyncio.Task[Any]:
        return asyncio.ensure_future(self._method(*args))


class FakeBufferActor:
    """The real SlotBuffer behind something that looks like a Ray actor."""

    def __init__(self, capacity: int, released: int) -> None:
        self.buffer = SlotBuffer(capacity, released)

    def __getattr__(self, name: str) -> FakeMethod:
        return FakeMethod(getattr(self.buffer, name))


class FakeGenerators:
    """Answers after a random delay, with the version that was committed when the request began."""

    def __init__(self, weights: FakeWeights, seed: int) -> None:
        self._weights = weights
        self._random = random.Random(seed)
        self.fail: Callable[[GenerationRequest], GroupFailed | None] = lambda request: None
        self.requests: list[GenerationRequest] = []
        self.aborted: list[str] = []

    async def generate(self, request: GenerationRequest) -> tuple[GenerationRecord, Any]:
        self.requests.append(request)
        version = self._weights.version
        await asyncio.sleep(self._random.random() * 0.003)
        if failure := self.fail(request):
            raise failure
        record = GenerationRecord(
            group_id=request.group_id,
            generator="fake",
            prompt_tokens=3,
            lengths_G=(4,) * request.count,
            truncated_G=(False,) * request.count,
            finite_G=(True,) * request.count,
            oldest_version=version,
            newest_version=self._weights.version,
            seconds=0.001,
        )
        return record, f"payload of {request.group_id}"

    async def abort_all(self, reason: str) -> None:
        self.aborted.append(reason)

    async def metrics(self) -> dict[str, float]:
        return {}

    async def now(self) -> list[Reading]:
        return [Reading(name="now/groups", value=0, labels={"part": "generator-0"})]


class FakeScorers:
    """Rewards 0, 1, 0, 1, … unless told otherwise."""

    def __init__(self) -> None:
        self.rewards: Callable[[Task, int], float | None] = lambda task, index: float(index % 2)
        self.group_size = 2

    async def score(self, task: Task, payload: Any) -> ScoreReport:
        verdicts = tuple(
            Verdict(reward=self.rewards(task, index), breakdown={}, status=Status.PASSED)
            for index in range(self.group_size)
        )
        return ScoreReport(verdicts_G=verdicts, seconds=0.0, raised={})

    async def metrics(self) -> dict[str, float]:
        return {}

    async def now(self) -> list[Reading]:
        return [Reading(name="now/groups", value=0, labels={"part": "scorer-0"})]


class FakeTeachers:
    """Finds every completion's tokens probable, unless told otherwise."""

    def __init__(self) -> None:
        self.finite: Callable[[str], tuple[bool, ...]] = lambda group_id: (True, True)
        self.scored: list[str] = []

    async def score(self, group_id: str, payload: Any) -> tuple[TeacherRecord, Any]:
        await asyncio.sleep(0.001)
        finite_G = self.finite(group_id)
        self.scored.append(group_id)
        return TeacherRecord(group_id=group_id, teacher="fake", finite_G=finite_G, seconds=0.5), f"scores of {payload}"

    async def metrics(self) -> dict[str, float]:
        return {"teachers/serving": 1.0}

    async def now(self) -> list[Reading]:
        return []


class FakeLearners:
    """Notes what it was given. `before_step` may raise LearnerLost or PayloadsLost."""

    def __init__(self) -> None:
        self.before_step: Callable[[int, Sequence[ScoredGroup]], None] = lambda step, groups: None
        self.trained: list[tuple[int, list[str]]] = []
        self.restarts = 0

    async def step(self, step: int, groups: Sequence[ScoredGroup]) -> StepResult:
        await asyncio.sleep(0.001)
        self.before_step(step, groups)
        self.trained.append((step, [group.task.task_id for group in groups]))
        return StepResult(metrics={"policy/loss": 0.0}, seconds=0.001)

    async def save(self, folder: str) -> None:
        (Path(folder) / "fake.json").write_text(json.dumps(self.trained))

    async def load(self, folder: str) -> None:
        self.trained = [(step, ids) for step, ids in json.loads((Path(folder) / "fake.json").read_text())]

    async def restart(self) -> None:
        self.restarts += 1
        self.trained = []

    async def export(self, folder: str) -> None:
        raise AssertionError("the loop does not export")


class FakeWeights:
    """Publishes by counting."""

    def __init__(self) -> None:
        self.version = -1
        self.published: list[int] = []

    async def publish(self, version: int) -> PublishReport:
        await asyncio.sleep(0.001)
        self.version = version
        self.published.append(version)
        return PublishReport(version=version, records=[], pack_seconds=0.0, seconds=0.001, total_bytes=0)


class FakeTracker:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.events: list[str] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.lines.append((step, dict(metrics)))

    def completions(self, step: int, rows: Sequence[Any]) -> None:
        pass

    def traces(self, step: int, rows: Sequence[Any]) -> None:
        pass

    def models(self) -> None:
        self.events.append("models to be registered")

    def event(self, text: str) -> None:
        self.events.append(text)

    def begin_attempt(self, attempt: int, resumed_from_step: int) -> None:
        self.events.append(f"attempt {attempt} from {resumed_from_step}")


def fake_run(
    folder: Path,
    *,
    max_steps: int = 6,
    max_staleness: int = 0,
    groups_per_step: int = 2,
    tasks: int = 64,
    checkpoint_every: int = 0,
    seed: int = 0,
    algorithm: Mapping[str, Any] | None = None,
    max_restarts: int = 3,
    store: Store | None = None,
    checkpoint_deadline_s: float = 60.0,
) -> Run:
    """A run over fakes, in `folder`; continues from what stands there, as `launch/train.py` does."""
    config = Config(
        max_steps=max_steps,
        max_staleness=max_staleness,
        seed=seed,
        algorithm=AlgorithmConfig(group_size=2, groups_per_step=groups_per_step, **(algorithm or {})),
        evaluation=EvaluationConfig(tasks=0),
        checkpoint=CheckpointConfig(every=checkpoint_every, deadline_s=checkpoint_deadline_s),
        tracking=TrackingConfig(mlflow=False, completions_every=0, traces_per_step=0),
    )
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    train = fake_tasks(tasks)
    budget = RestartBudget(max_restarts)
    weights = FakeWeights()
    checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint, store)
    return Run(
        config=config,
        accounts=Accounts(
            Ledger(folder / "ledger.jsonl"), TaskIterator(train, seed), {task.task_id: task for task in train}
        ),
        generators=FakeGenerators(weights, seed),
        scorers=FakeScorers(),
        learners=FakeLearners(),
        weights=weights,
        checkpoints=checkpoints,
        tracker=FakeTracker(),  # type: ignore[arg-type]
        budget=budget,
        held_out=[],
        make_buffer=lambda released: RolloutBuffer(
            max_staleness=max_staleness,
            groups_per_step=groups_per_step,
            budget=budget,
            released=released,
            make_actor=FakeBufferActor,
            kill_actor=lambda actor: None,
        ),
        snapshot=checkpoints.newest(),
    )
