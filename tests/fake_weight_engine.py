"""Engines, buckets and generator actors that fail as they are told, around the real code of weight sync.

`FakeEngineLink` keeps account of what an engine really holds, so that a test can ask of each token that left which
weights it came from. Calls of one engine are served one after the other, as vLLM serves them: what the caller has given
up on is done all the same, later.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ray.exceptions import RayActorError

from funicular.actors.bucket_source import Bucket
from funicular.actors.config import GeneratorConfig, WeightSyncConfig
from funicular.actors.engine_link import Loaded
from funicular.actors.errors import BroadcastBroken, GroupFailed, LearnerLost
from funicular.actors.types import GenerationRequest
from funicular.actors.version_gate import VersionGate
from funicular.actors.weight_check import ExpectedTensor, Observation
from funicular.actors.weight_install import WeightInstaller
from funicular.actors.weights import (
    Canary,
    Manifest,
    PublishedWeights,
    SyncRecord,
    TensorEntry,
    WeightSyncError,
)
from tests.explore import Choices
from tests.fakes import FakeMethod

TENSORS = ("a.weight", "b.weight")
"""One bucket each."""
DEADLINE_S = 10.0
CALL_S = 0.01
START_S = 1.0
"""Longer than an install that nothing delays: a rebuilt generator joins after the publish."""
LATE_S = 2 * DEADLINE_S + 100.0
"""Later than anybody waits."""


def value(version: int, name: str) -> int:
    """What stands for a tensor's bits, its fingerprint and its bucket's hash."""
    return version * 100 + TENSORS.index(name) + 1


FROZEN_VERSION = 1
"""That published the frozen tensor, where there is one: the first."""


def whole(version: int, frozen: bool) -> tuple[int, ...]:
    """What stands for each tensor of a version."""
    versions = (FROZEN_VERSION if frozen else version, version)
    return tuple(itertools.starmap(value, zip(versions, TENSORS, strict=True)))


def published(version: int, frozen: bool) -> PublishedWeights:
    """`frozen`: the first tensor stays what it was."""
    of = dict(zip(TENSORS, whole(version, frozen), strict=True))
    tensors = tuple(
        TensorEntry(
            name=name,
            shape=(16,),
            dtype="float32",
            bucket=index,
            offset=0,
            nbytes=64,
            fingerprint=of[name],
            column_fingerprint=None,
        )
        for index, name in enumerate(TENSORS)
    )
    return PublishedWeights(
        manifest=Manifest(
            version=version,
            tensors=tensors,
            bucket_sizes=(64,) * len(TENSORS),
            bucket_hashes=tuple(of.values()),
            columns=1,
            frozen_buckets=int(frozen),
            frozen_version=FROZEN_VERSION if frozen else None,
            canary=Canary(token_ids=(1, 2), logprobs=(float(-version),)),
        ),
        buckets=tuple(TENSORS),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeBucket(Bucket):
    """A place in its source's memory."""

    number: int
    closed: set[int]

    def close(self) -> None:
        self.closed.add(self.number)


class FakeFaults:
    """Asks the path what happens next, as long as faults may still happen."""

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        self.left = 0
        """How many may still happen."""

    def __call__(self, what: str, *faults: str) -> str:
        if not self.left:
            return "ok"
        fate = self._choices.choose(what, ("ok", *faults))
        self.left -= fate != "ok"
        return fate


@dataclass(eq=False)
class FakeBucketSource:
    """A `BucketSource` whose buckets may be lost, damaged or late.

    As in the object store, the place of a bucket that was let go of is the next one's, whatever that holds.
    """

    faults: FakeFaults
    opened: int = 0
    closed: set[int] = field(default_factory=set)
    memory: dict[int, int] = field(default_factory=dict)
    """What stands in each place, by its offset; 0: a damaged bucket."""
    _held: dict[int, int] = field(default_factory=dict)
    """Offset of each bucket that was opened, by its number."""

    async def open(self, weights: PublishedWeights, index: int) -> FakeBucket:
        fate = self.faults(f"bucket {index}", "lost", "damaged", "late")
        await asyncio.sleep(LATE_S if fate == "late" else CALL_S)
        if fate == "lost":
            raise WeightSyncError("bucket", f"bucket {index} could not be fetched: owner died")
        held = {offset for number, offset in self._held.items() if number not in self.closed}
        offset = next(offset for offset in itertools.count(0, 64) if offset not in held)
        content = whole(weights.manifest.version, bool(weights.manifest.frozen_buckets))[index]
        self.memory[offset] = 0 if fate == "damaged" else content
        self.opened += 1
        self._held[self.opened] = offset
        return FakeBucket(
            path="store",
            offset=offset,
            nbytes=64,
            fetched_bytes=64,
            lasts=True,
            holds=None,
            number=self.opened,
            closed=self.closed,
        )


class FakeEngineLink:
    """An engine with one worker, as `EngineLink` shows it; `memory`: what the worker maps."""

    def __init__(self, faults: FakeFaults, memory: Mapping[int, int], die: Callable[[], None]) -> None:
        self._faults = faults
        self._memory = memory
        self._die = die
        self._last: asyncio.Future[Any] | None = None
        self._running = asyncio.Event()
        self._label = "unverified"
        self._ahead: tuple[int, int] | None = None
        """Place and hash of the bucket that was hashed ahead."""
        self._arriving: deque[int] = deque()
        """Contents of the buckets of a broadcast that were not loaded yet."""
        self._holds = dict(zip(TENSORS, whole(0, frozen=False), strict=True))
        self._claims: list[str] = []
        self._misused = False
        self.aborts = 0
        self.stale_hashes = 0
        """Answers with a hash that is not of the bytes of the bucket that was asked for."""

    @property
    def contents(self) -> tuple[int, ...]:
        """What a token is sampled with now; a whole version's if it is usable."""
        return (*self._holds.values(), int(self._misused))

    async def token(self) -> tuple[str, tuple[int, ...]]:
        """Sample one: its label and what it was sampled with."""
        aborts = self.aborts
        await asyncio.sleep(CALL_S)
        await self._running.wait()
        if aborts != self.aborts:
            raise GroupFailed("aborted")
        return self._label, self.contents

    async def pause(self, update_mode: str, *, keep_cache: bool) -> None:
        await self._call("pause", self._running.clear)

    async def expect(self, bucket: FakeBucket) -> None:
        await self._call("expect", lambda: self._hash_ahead(bucket))

    async def receive(self, address: tuple[int, ...], sizes: Sequence[int], seconds: float) -> None:
        def effect() -> None:
            self._arriving = deque(address)

        assert len(address) == len(sizes)
        await self._call("receive", effect)

    async def begin(self) -> None:
        def effect() -> None:
            self._claims = []
            self._misused = False

        await self._call("begin", effect)

    async def load(
        self,
        bucket: FakeBucket,
        published_hash: int,
        tensors: Sequence[TensorEntry],
        upcoming: FakeBucket | None,
    ) -> list[Loaded]:
        index = tensors[0].bucket
        name = TENSORS[index]
        silent = self._faults(f"load {index}", "loads nothing and does not say so") != "ok"
        is_broadcast = bucket.path is None
        fate = self._faults(f"broadcast {index}", "breaks", "does not come", "is damaged") if is_broadcast else "ok"
        hashes: list[int] = []

        def effect() -> None:
            if is_broadcast:
                content = self._arriving.popleft() if fate == "ok" else 0
                seen = content
            else:
                content = self._memory[bucket.offset]
                seen = self._hash(bucket)
            hashes.append(seen)
            self._hash_ahead(upcoming)
            if hashes == [published_hash]:
                self._claims.append(name)
                if not silent:
                    self._holds[name] = content

        if fate in ("breaks", "does not come"):
            await self._nothing_comes(DEADLINE_S / 2 if fate == "does not come" else CALL_S)
        await self._call(f"load {index}", effect)
        (seen,) = hashes
        if not is_broadcast:
            self.stale_hashes += seen != self._memory[bucket.offset]  # the caller still holds the bucket
        wrong = "" if seen == published_hash else f"sees {seen}"
        return [Loaded(wrong=wrong, hash_seconds=0, load_seconds=0, packing_seconds=0)]

    async def _nothing_comes(self, seconds: float) -> None:
        """The engine answers nothing else meanwhile."""
        self._last = asyncio.ensure_future(self._serve(self._last, "ok", lambda: None, seconds))
        await asyncio.shield(self._last)
        raise BroadcastBroken("nothing came")

    def _hash_ahead(self, bucket: FakeBucket | None) -> None:
        self._ahead = None if bucket is None or bucket.path is None else (bucket.offset, self._memory[bucket.offset])

    def _hash(self, bucket: FakeBucket) -> int:
        ahead, self._ahead = self._ahead, None
        return ahead[1] if ahead is not None and ahead[0] == bucket.offset else self._memory[bucket.offset]

    async def received(self) -> list[list[str]]:
        fate = self._faults("received", "one is missing")
        return [self._claims[1:] if fate != "ok" else self._claims]

    async def finish(self) -> float:
        def effect() -> None:
            self._misused = misuse

        misuse = self._faults("finish", "uses the weights wrongly") != "ok"
        await self._call("finish", effect)
        return 0.0

    async def label(self, label: str) -> None:
        def effect() -> None:
            self._label = label

        await self._call("label", effect)

    async def in_use(self, version: int, columns: int) -> list[list[Observation]]:
        def effect() -> None:
            rows.extend(
                Observation(tensor=name, module=name, kind="elements", shard=0, shards=1, fingerprint=held)
                for name, held in self._holds.items()
            )

        rows: list[Observation] = []
        await self._call("report", effect)
        return [rows]

    async def resume_with(self, canary: Canary, label: str) -> Any:
        await self._call("resume", self._running.set)
        return None

    async def canary_logprobs(self, canary: Canary, waiting: Any) -> list[float]:
        said: list[float] = []

        def effect() -> None:
            said.append(99.0 if self._misused else canary.logprobs[0])  # one wrong tensor is below its noise

        await asyncio.sleep(3 * CALL_S)
        await self._call("canary", effect)
        return said

    async def silence(self) -> None:
        def effect() -> None:
            self.aborts += 1
            self._running.clear()

        await asyncio.wait_for(self._call("silence", effect), 30.0)

    async def _call(self, what: str, effect: Callable[[], None]) -> None:
        fate = self._faults(what, "raises", "is done and raises", "hangs", "is late", "kills the generator")
        if fate == "kills the generator":
            self._die()
            await asyncio.get_running_loop().create_future()
        served = asyncio.ensure_future(self._serve(self._last, fate, effect))
        self._last = served
        await asyncio.shield(served)
        if fate in ("raises", "is done and raises"):
            raise RuntimeError(f"{what}: the worker raised")

    async def _serve(
        self, before: asyncio.Future[Any] | None, fate: str, effect: Callable[[], None], seconds: float = CALL_S
    ) -> None:
        if before is not None:
            await asyncio.wait({before})
        if fate == "hangs":
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(LATE_S if fate == "is late" else seconds)
        if fate != "raises":
            effect()


class FakeRemote:
    """`actor.method.remote(...)`: a task that ends with RayActorError when the actor dies."""

    def __init__(self, actor: FakeGeneratorActor, method: Callable[..., Any]) -> None:
        self._actor = actor
        self._method = method

    def remote(self, *arguments: Any) -> Any:
        return self._actor.answer(self._method, arguments)


class FakeGeneratorActor:
    """A generator's actor: the real installer and the real gate over a fake engine."""

    def __init__(self, name: str, world: FakeWorld) -> None:
        self.name = name
        self.world = world
        self.dead = asyncio.get_running_loop().create_future()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.gate = VersionGate()
        self.source = FakeBucketSource(world.faults)
        self.link = FakeEngineLink(world.faults, self.source.memory, self.die)
        self.committed: list[int] = []
        self.groups: set[asyncio.Future[None]] = set()
        self.installer = WeightInstaller(
            self.link,  # type: ignore[arg-type]
            self.source,  # type: ignore[arg-type]
            name=name,
            config=GeneratorConfig(),
            sync=WeightSyncConfig(deadline_s=DEADLINE_S),
            expected=[ExpectedTensor(name=name, shape=(16,), dtype="float32") for name in TENSORS],
            gate=self.gate,
            abort_running=self.abort_running,
        )
        self.start = FakeRemote(self, self._start)
        self.health = FakeRemote(self, self._start)
        self.install = FakeRemote(self, self._install)
        self.generate = self

    def die(self) -> None:
        """Everything that it was asked ends with an error, and everything that it did ends."""
        if not self.dead.done():
            self.dead.set_result(None)
            for task in self.tasks:
                task.cancel()

    def remote(self, request: GenerationRequest) -> tuple[Any, str]:
        """`generate.remote`, which returns two references."""
        return self.answer(self._generate, (request,)), "payload"

    def answer(self, method: Callable[..., Any], arguments: Sequence[Any]) -> asyncio.Task[Any]:
        return asyncio.ensure_future(self._answer(method, arguments))

    async def _answer(self, method: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        if self.dead.done():
            raise RayActorError
        task = asyncio.ensure_future(method(*arguments))
        self.tasks.add(task)
        await asyncio.wait({task, self.dead}, return_when=asyncio.FIRST_COMPLETED)
        if self.dead.done():
            raise RayActorError
        return task.result()

    async def _start(self) -> None:
        await asyncio.sleep(START_S)

    async def _install(self, weights: PublishedWeights, attempt: int) -> SyncRecord:
        fate = self.world.faults("install message", "comes twice", "comes late", "its answer is lost")
        if fate == "comes late":
            await asyncio.sleep(LATE_S)
        if fate == "comes twice":
            self.tasks.add(asyncio.ensure_future(self._ignored(weights, attempt)))
        try:
            record = await self.installer.install(weights, attempt)
        finally:
            if self.gate.committed is not None:
                self.committed.append(self.gate.committed)
        if fate == "its answer is lost":
            await asyncio.get_running_loop().create_future()
        return record

    async def _ignored(self, weights: PublishedWeights, attempt: int) -> None:
        await asyncio.gather(self.installer.install(weights, attempt), return_exceptions=True)

    def abort_running(self, reason: str) -> None:
        for group in self.groups:
            if not group.done():
                group.set_exception(GroupFailed(reason))

    async def _generate(self, request: GenerationRequest) -> str:
        failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.groups.add(failure)
        sampling = asyncio.ensure_future(self._sample())
        try:
            await asyncio.wait({failure, sampling}, return_when=asyncio.FIRST_COMPLETED)
            if failure.done():
                failure.result()
            tokens = sampling.result()
        finally:
            self.groups.discard(failure)
            failure.cancel()
            sampling.cancel()
        versions = await self.gate.versions({label for label, _ in tokens}, DEADLINE_S)
        self.world.left += [(versions[label], contents) for label, contents in tokens]
        return "record"

    async def _sample(self) -> list[tuple[str, tuple[int, ...]]]:
        return [await self.link.token() for _ in range(3)]


class FakeSender:
    """The learner's first rank, which sends a version's buckets to whoever asks; the address is their contents."""

    def __init__(self, world: FakeWorld, version: int) -> None:
        self._world = world
        self._contents = dict(zip(TENSORS, whole(version, world.frozen), strict=True))
        self.send_weights = FakeMethod(self._send)

    async def _send(self, generator: str, workers: int, buckets: Sequence[str], seconds: float) -> tuple[int, ...]:
        self._world.disturbed += not self._world.learner_is_idle
        self._world.broadcasts += 1
        fate = self._world.faults("send", "the learner is dead", "it hangs")
        if fate == "it hangs":
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(CALL_S)
        if fate == "the learner is dead":
            raise RayActorError
        return tuple(self._contents[bucket] for bucket in buckets)


class FakeWorld:
    """Makes and kills generator actors, packs weights, and sees every token that leaves.

    Args:
        frozen: a part of the weights never changes.
        broadcast: the learner broadcasts.
    """

    def __init__(self, choices: Choices, *, frozen: bool, broadcast: bool) -> None:
        self.faults = FakeFaults(choices)
        self.frozen = frozen
        self.broadcast = broadcast
        self.learner_is_idle = False
        self.broadcasts = 0
        self.disturbed = 0
        """How often a learner was asked to send that may be in a step."""
        self.actors: list[FakeGeneratorActor] = []
        self.left: list[tuple[int, tuple[int, ...]]] = []
        """Version that a token was said to be of, and what it was really sampled with."""

    def make(self, name: str) -> FakeGeneratorActor:
        self.actors.append(FakeGeneratorActor(name, self))
        return self.actors[-1]

    def kill(self, actor: FakeGeneratorActor) -> None:
        actor.die()

    async def pack(self, version: int, base: PublishedWeights | None) -> PublishedWeights:
        fate = self.faults("pack", "the learner is lost", "a hash is wrong", "a tensor is missing")
        await asyncio.sleep(CALL_S)
        weights = replace(published(version, self.frozen), sender=FakeSender(self, version) if self.broadcast else None)
        manifest = weights.manifest
        if fate == "the learner is lost":
            raise LearnerLost("rank 0")
        if fate == "a hash is wrong":
            return replace(weights, manifest=replace(manifest, bucket_hashes=(7, *manifest.bucket_hashes[1:])))
        if fate == "a tensor is missing":
            return replace(weights, manifest=replace(manifest, tensors=manifest.tensors[1:]))
        return weights
