"""Parts that take as long as measured ones and compute nothing: what the controller is measured with.

Loop, accounts, ledger, buffer, routing of generators and scorers, and weight sync are the real ones. Of an actor there
is only what the controller sees: a method that is awaited and answers after a while. Ray's own cost is not in it.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from funicular.actors.scorer import ScoreReport
from funicular.actors.serving_stats import ServingStats
from funicular.actors.types import GenerationRecord, GenerationRequest, ScoredGroup, StepResult
from funicular.actors.weights import Canary, Manifest, PublishedWeights, SyncRecord
from funicular.rewards.types import Status, Task, Verdict
from tests.fakes import FakeMethod


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTimes:
    """One measured group."""

    generate_s: float
    score_s: float
    lengths_G: tuple[int, ...]
    """Tokens per completion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """What a run took; each use draws one at random."""

    source: str
    groups: Sequence[GroupTimes]
    learn_s: Sequence[float]
    pack_s: Sequence[float]
    install_s: Sequence[float]

    @classmethod
    def read(cls, file: Path) -> Times:
        """What `measure` wrote."""
        data = json.loads(file.read_text())
        groups = [GroupTimes(generate_s=g, score_s=s, lengths_G=tuple(n)) for g, s, n in data.pop("groups")]
        return cls(groups=groups, **data)


def documented_times(seed: int = 0) -> Times:
    """The means of the embedded run in docs/benchmarks.md, with a spread that is assumed, not measured.

    Durations of groups are log-normal (sigma 0.5), and a group's longest completion is as long as its duration says.
    """
    rng = random.Random(seed)
    groups = []
    for _ in range(512):
        spread = rng.lognormvariate(-0.125, 0.5)  # of mean 1
        longest = max(1, round(400 * spread))
        lengths = (longest, *(rng.randint(1, longest) for _ in range(7)))
        groups.append(GroupTimes(generate_s=4.3 * spread, score_s=0.05 / 8, lengths_G=lengths))
    return Times(
        source="the embedded run's means in docs/benchmarks.md, groups spread log-normally by 0.5",
        groups=groups,
        learn_s=[9.8],
        pack_s=[0.63],
        install_s=[0.71],
    )


class Clock:
    """Draws measured times, and sleeps for them, `speed` times as fast. 0: not at all."""

    def __init__(self, times: Times, speed: float, seed: int) -> None:
        self.times = times
        self.speed = speed
        self.random = random.Random(seed)

    async def sleep(self, seconds: float) -> None:
        """As long as that would take."""
        await asyncio.sleep(seconds / self.speed if self.speed else 0)


class SimulatedActor:
    """`actor.method.remote(...)` runs `do_method` on this event loop."""

    def __getattr__(self, name: str) -> FakeMethod:
        return FakeMethod(getattr(self, f"do_{name}"))

    async def do_start(self) -> None:
        """Ready at once."""

    async def do_health(self) -> None:
        """Well."""


class SimulatedGenerator(SimulatedActor):
    """Completes so many groups at a time, and pauses while weights are installed.

    Args:
        places: groups under way at the same time; further ones wait.
    """

    def __init__(self, name: str, clock: Clock, places: int) -> None:
        self._name = name
        self._clock = clock
        self._places = asyncio.Semaphore(places)
        self._open = asyncio.Event()
        self._paused_s = 0.0
        self._version = -1

    def __getattr__(self, name: str) -> Any:
        if name == "generate":
            return _TwoResults(self._generate)
        return super().__getattr__(name)

    async def _generate(self, request: GenerationRequest) -> GenerationRecord:
        async with self._places:
            times = self._clock.random.choice(self._clock.times.groups)
            await self._open.wait()
            oldest = self._version
            remaining = times.generate_s
            while remaining > 0:
                paused = self._paused_s
                await self._clock.sleep(remaining)
                await self._open.wait()
                remaining = self._paused_s - paused
        return GenerationRecord(
            group_id=request.group_id,
            generator=self._name,
            prompt_tokens=40,
            lengths_G=times.lengths_G,
            truncated_G=(False,) * len(times.lengths_G),
            finite_G=(True,) * len(times.lengths_G),
            oldest_version=oldest,
            newest_version=self._version,
            seconds=times.generate_s,
        )

    async def do_serving_stats(self) -> ServingStats:
        return ServingStats()

    async def do_install(self, published: PublishedWeights, attempt: int) -> SyncRecord:
        self._open.clear()
        seconds = self._clock.random.choice(self._clock.times.install_s)
        await self._clock.sleep(seconds)
        self._paused_s += seconds
        self._version = published.manifest.version
        self._open.set()
        nothing_else = {field.name: 0 for field in fields(SyncRecord)}
        told = {"generator": self._name, "version": self._version, "paused_seconds": seconds, "load_seconds": seconds}
        return SyncRecord(**nothing_else | told)


class _TwoResults:
    """A method with `num_returns=2`: the record, and the payload's reference."""

    def __init__(self, method: Any) -> None:
        self._method = FakeMethod(method)

    def remote(self, request: GenerationRequest) -> tuple[Any, str]:
        return self._method.remote(request), f"payload of {request.group_id}"


class SimulatedScorer(SimulatedActor):
    """Every other completion is right."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def do_score(self, task: Task, payload: Any) -> ScoreReport:
        times = self._clock.random.choice(self._clock.times.groups)
        await self._clock.sleep(times.score_s)
        verdicts = tuple(
            Verdict(reward=float(i % 2), breakdown={"correctness": float(i % 2)}, status=Status.PASSED)
            for i in range(len(times.lengths_G))
        )
        return ScoreReport(verdicts_G=verdicts, seconds=times.score_s, raised={})


class SimulatedLearners:
    """Learns in the measured time, whatever the batch: one that is n times as large has n times as many ranks."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.trained_lengths: list[int] = []

    async def step(self, step: int, groups: Sequence[ScoredGroup]) -> StepResult:
        self.trained_lengths += [length for group in groups for length in group.generation.lengths_G]
        seconds = self._clock.random.choice(self._clock.times.learn_s)
        await self._clock.sleep(seconds)
        return StepResult(metrics={"policy/loss": 0.0}, seconds=seconds)

    async def pack(self, version: int, base: PublishedWeights | None = None) -> PublishedWeights:
        await self._clock.sleep(self._clock.random.choice(self._clock.times.pack_s))
        canary = Canary(token_ids=(1, 2), logprobs=(-1.0,))
        manifest = Manifest(version=version, tensors=(), bucket_sizes=(), bucket_hashes=(), columns=1, canary=canary)
        return PublishedWeights(manifest=manifest, buckets=())

    async def save(self, folder: str) -> None:
        (Path(folder) / "simulated").touch()

    async def load(self, folder: str) -> None:
        raise AssertionError("a simulated run begins anew")

    async def restart(self) -> None:
        raise AssertionError("simulated learners do not die")

    async def export(self, folder: str) -> None:
        raise AssertionError("the loop does not export")
