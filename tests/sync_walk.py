"""Three versions are published, the second one amid faults; whatever happens, the promises of weight sync hold."""

from __future__ import annotations

import asyncio
import contextlib

from funicular.actors.errors import GroupFailed, LearnerLost
from funicular.actors.generators import Generators
from funicular.actors.types import GenerationRequest
from funicular.actors.weight_sync import PublishReport, WeightSync
from funicular.cluster.supervise import RestartBudget
from tests.explore import Choices, run_in_virtual_time
from tests.fake_weight_engine import CALL_S, DEADLINE_S, FakeWorld, whole
from tests.fakes import fake_tasks

START_DEADLINE_S = 50.0
INSTALL_DEADLINE_S = DEADLINE_S + 15.0
ATTEMPTS = 2
PUBLISH_BOUND_S = ATTEMPTS * (INSTALL_DEADLINE_S + 1.0) + 2 * START_DEADLINE_S
RECOVERY_BOUND_S = 500.0
REQUEST = GenerationRequest(group_id="g", task=fake_tasks(1)[0], count=1, temperature=1.0)


def walk(choices: Choices, *, generators: int, faults: int, frozen: bool = False, broadcast: bool = False) -> None:
    """One path, with at most so many faults; see `FakeWorld`."""
    world = FakeWorld(choices, frozen=frozen, broadcast=broadcast)
    run_in_virtual_time(lambda: _publish_three_versions(world, generators, faults))


async def _publish_three_versions(world: FakeWorld, count: int, faults: int) -> None:
    service = Generators(
        world.make,
        count=count,
        start_deadline_s=START_DEADLINE_S,
        install_deadline_s=INSTALL_DEADLINE_S,
        budget=RestartBudget(4 * faults),
        kill_actor=world.kill,
    )
    await service.start()
    sync = IdleLearnerSync(world, service)
    await sync.publish(1)
    clients = [asyncio.create_task(_generate(service, after=number * CALL_S, times=4)) for number in range(3 * count)]
    await asyncio.sleep(5 * CALL_S)

    world.faults.left = faults
    version = 2
    while sync.version != version:
        began = asyncio.get_running_loop().time()
        try:
            await sync.publish(version)
        except LearnerLost:
            version += 1  # the loop restarts the learner, and publishes what it restored as the next version
        assert asyncio.get_running_loop().time() - began <= PUBLISH_BOUND_S, "publish outlasted its deadlines"
    _check_tokens(world)

    world.faults.left = 0
    while any(not actor.dead.done() and actor.installer.running for actor in world.actors):
        await asyncio.sleep(1.0)
    await sync.publish(version + 1)
    while service.serving < count:
        await asyncio.sleep(1.0)
        assert asyncio.get_running_loop().time() < RECOVERY_BOUND_S, "a generator does not come back"
    await asyncio.gather(*clients)
    await asyncio.gather(*(service.generate(REQUEST) for _ in range(count)))
    _check_tokens(world)
    _check_generators(world, count, version + 1)
    assert world.left[-1][0] == version + 1
    assert bool(world.broadcasts) == world.broadcast
    assert not world.disturbed, "a learner was to send that may be in a step"


class IdleLearnerSync(WeightSync):
    """Notes when the learner is idle: while it publishes."""

    def __init__(self, world: FakeWorld, service: Generators) -> None:
        super().__init__(world, service, attempts=ATTEMPTS)
        self._world = world

    async def publish(self, version: int) -> PublishReport:
        self._world.learner_is_idle = True
        try:
            return await super().publish(version)
        finally:
            self._world.learner_is_idle = False


async def _generate(service: Generators, *, after: float, times: int) -> None:
    await asyncio.sleep(after)
    for _ in range(times):
        with contextlib.suppress(GroupFailed):
            await service.generate(REQUEST)


def _check_tokens(world: FakeWorld) -> None:
    """None of other weights than it claims has left."""
    for version, contents in world.left:
        assert contents == (*whole(version, world.frozen), 0), (
            f"a token of version {version} was sampled with {contents}"
        )


def _check_generators(world: FakeWorld, count: int, version: int) -> None:
    """All serve the newest version; none ever went back; every hash was of the bucket; no bucket is held."""
    living = [actor for actor in world.actors if not actor.dead.done()]
    assert [actor.link.contents for actor in living] == [(*whole(version, world.frozen), 0)] * count
    for actor in world.actors:
        assert actor.committed == sorted(actor.committed), "the committed version went back"
        assert not actor.link.stale_hashes, "a hash was of bytes that had stood there before"
    for actor in living:
        assert len(actor.source.closed) == actor.source.opened, "a bucket was not let go of"
