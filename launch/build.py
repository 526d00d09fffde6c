"""From a checked recipe to a run: the one place that names concrete classes and says what resources they take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from funicular.actors.buffer import buffer_actor
from funicular.actors.buffers import RolloutBuffer
from funicular.actors.distillation_config import teacher_in_ranks, teacher_scores_samples
from funicular.actors.doing import Doing
from funicular.actors.engine_link import SILENCE_DEADLINE_S
from funicular.actors.generator import generator_actor
from funicular.actors.generators import Generators
from funicular.actors.given_completions import GivenCompletions, encoder_actor
from funicular.actors.gpu_turns import GeneratorsInTurn, LearnersInTurn, take_turns
from funicular.actors.kept_gauges import KeptGauges
from funicular.actors.learners import LearnerGroup
from funicular.actors.pool_judge import PoolJudge, judge_deadline_s
from funicular.actors.sandbox_pool import sandbox_pool_actor
from funicular.actors.sandbox_pools import Nodes, SandboxPools
from funicular.actors.scorer import ErrorStreaks, scorer_actor
from funicular.actors.scorers import Scorers
from funicular.actors.served_adapter import served_adapter
from funicular.actors.teacher import teacher_actor
from funicular.actors.teachers import Teachers
from funicular.actors.unsent_weights import UnsentWeights
from funicular.actors.weight_sync import WeightSink, WeightSource, WeightSync
from funicular.cluster.node_monitors import NodeMonitors
from funicular.cluster.roles import GENERATOR, LEARNER, TEACHER, role_resources, small_cpus
from funicular.cluster.session import (
    Demand,
    Engines,
    ask_for_sandbox,
    nodes_now,
    sandbox_cpus_by_node,
    sandbox_nodes_come,
    seen_by_actors,
    wait_for_sandbox,
)
from funicular.cluster.shared_places import SharedPlaces
from funicular.cluster.supervise import RestartBudget
from funicular.launch.accounts import Accounts
from funicular.launch.checkpoints import Checkpoints
from funicular.launch.config import Config
from funicular.launch.ledger import Ledger
from funicular.launch.prepared import Prepared
from funicular.launch.run import Run
from funicular.launch.sandbox_checks import effective_sandbox, language_of, level_refusal, needs_sandbox
from funicular.launch.tracking import Tracker
from funicular.rewards.runner import scoring_deadline_s
from funicular.rewards.sandbox.isolation import IsolationUnavailable
from funicular.rewards.types import Task


class Starts(Protocol):
    """A part that takes its time to start."""

    async def start(self) -> Any:
        """Returns when it can be used."""


INSTALL_ANSWER_S = SILENCE_DEADLINE_S + 15.0
"""The generator's own deadlines come first, because it can say which part was late."""


def demand(config: Config) -> Demand:
    """What the recipe asks of the cluster: one CPU per engine worker, learner rank and scorer; a GPU for the first
    two where there are GPUs, the same for both with `cluster.colocate`. Sandbox pools, and what encodes given
    completions, ask for nothing: they share the cores of their nodes."""
    roles = {LEARNER: config.learner.ranks}
    if _generates(config):
        roles[GENERATOR] = config.generator.count * config.generator.tensor_parallel_size
    if teacher_scores_samples(config.distillation):
        roles[TEACHER] = config.distillation.count * config.distillation.tensor_parallel_size
    cpus = sum(roles.values())
    engines = {GENERATOR: config.generator.tensor_parallel_size, TEACHER: config.distillation.tensor_parallel_size}
    if config.cluster.colocate:  # engines take no GPUs and no places of their own, but ranks must stand as they need
        del roles[GENERATOR]
        engines[LEARNER] = engines.pop(GENERATOR)
    return Demand(
        cpus=cpus + config.reward.scorers,
        gpus=sum(roles.values()),
        roles=roles,
        engines=tuple(
            Engines(role=role, count=roles[role] // workers, workers=workers)
            for role, workers in engines.items()
            if role in roles
        ),
    )


async def build(
    config: Config,
    prepared: Prepared,
    *,
    use_gpu: bool,
    tracker: Tracker,
    ledger: Ledger,
    roles: frozenset[str] = frozenset(),
) -> Run:
    """Start every part, engines and learner ranks at the same time, and return the run that uses them.

    Args:
        roles: those that nodes of the cluster are kept for.

    Raises:
        IsolationUnavailable: a node does not isolate untrusted code as the recipe requires; found before anything
            that takes long is started.
    """
    pools = await start_pools(config, (*prepared.tasks.train, *prepared.tasks.held_out), tracker.event)
    budget = RestartBudget(config.cluster.max_restarts)
    given = _given(config, prepared, roles, budget)
    teachers = _teachers(config, prepared, use_gpu, roles, budget)
    scorers = make_scorers(config, prepared.recipe_folder, pools, budget, completions=config.algorithm.group_size)
    (learners, generators), _ = await asyncio.gather(
        start_policy(config, prepared.model_folder, prepared.teacher_folder, budget, use_gpu=use_gpu, roles=roles),
        _start(given, teachers),
    )
    await learners.check_folder(prepared.folder.checkpoints)
    iterator = prepared.tasks.iterator(config.seed)
    return Run(
        config=config,
        accounts=Accounts(ledger, iterator, {task.task_id: task for task in prepared.tasks.train}),
        generators=generators or _instead(given),
        scorers=scorers,
        learners=learners,
        weights=make_weight_sync(config, learners, generators) if generators else UnsentWeights(),
        checkpoints=Checkpoints(prepared.folder.checkpoints, config.checkpoint, prepared.store),
        tracker=tracker,
        budget=budget,
        held_out=prepared.tasks.evaluation_tasks(config.evaluation.tasks),
        make_buffer=lambda released: RolloutBuffer(
            max_staleness=config.max_staleness,
            groups_per_step=config.algorithm.groups_per_step,
            budget=budget,
            released=released,
            deadline_s=config.cluster.buffer_deadline_s,
            make_actor=partial(buffer_actor, cpus=small_cpus(roles)),
        ),
        teachers=teachers,
        given=given,
        nodes=NodeMonitors() if config.tracking.system_metrics else None,
        snapshot=prepared.snapshot,
        model_shape=learners.model_shape,
    )


async def start_pools(config: Config, tasks: Sequence[Task], say: Callable[[str], None]) -> SandboxPools | None:
    """A sandbox pool on each node, if any of the tasks needs one, and later on nodes that join for it.

    Args:
        say: called with sentences about levels that nodes reach, also later.

    Raises:
        IsolationUnavailable: a node does not isolate untrusted code as the recipe requires.
        ClusterTooSmall: the recipe asks for nodes for the sandbox, and none came.
    """
    if not needs_sandbox(config, tasks):
        return None
    sandbox = effective_sandbox(config)
    if sandbox_nodes_come(config.cluster):
        ask_for_sandbox(config.cluster.sandbox_places)
        offered = await asyncio.to_thread(wait_for_sandbox, config.cluster.room_deadline_s)
    else:
        offered = sandbox_cpus_by_node()

    def slots_of(nodes: Mapping[str, int]) -> dict[str, int]:
        return {node: sandbox.slots or cpus for node, cpus in nodes.items()}

    def look() -> Nodes:
        alive, kept = nodes_now()
        return Nodes(alive=alive, slots=slots_of(kept))

    pools = SandboxPools(
        lambda node, slots: sandbox_pool_actor(node, config.cluster.max_restarts).remote(sandbox, slots),
        slots_of(offered),
        look=look,
        say=say,
    )
    try:
        for sentence in await pools.start(language_of(config)):
            say(sentence)
    except IsolationUnavailable as error:
        raise level_refusal(config, error) from error
    return pools


def make_scorers(
    config: Config, recipe_folder: Path, pools: SandboxPools | None, budget: RestartBudget, *, completions: int
) -> Scorers:
    """The scorers of a recipe.

    Args:
        completions: of a group, at most; their time limits make a scorer's deadline.
    """
    return Scorers(
        _scorer_maker(config, seen_by_actors(recipe_folder), pools),
        count=config.reward.scorers,
        deadline_s=scoring_deadline_s(config.reward, completions, judge_deadline_s(config.sandbox)),
        streaks=ErrorStreaks(config.reward.max_consecutive_errors),
        budget=budget,
        pools=pools,
    )


def _scorer_maker(config: Config, recipe_folder: Path, pools: SandboxPools | None) -> Callable[[str], Any]:
    actor_class = scorer_actor().options(num_cpus=1, max_restarts=0)

    def make(name: str) -> Any:
        judge = None
        if pools:
            judge = PoolJudge(pools.handles, client=name, run=config.name, config=config.sandbox)
        return actor_class.remote(config.reward, str(recipe_folder), judge, name=name, run=config.name)

    return make


def _generates(config: Config) -> bool:
    """Whether anything is sampled: evaluation does even where training completions are given."""
    return config.data.completion_column is None or config.evaluation.tasks > 0


async def _start(*parts: Starts | None) -> None:
    await asyncio.gather(*(part.start() for part in parts if part))


async def start_policy(
    config: Config,
    model_folder: Path,
    teacher_folder: Path | None,
    budget: RestartBudget,
    *,
    use_gpu: bool,
    roles: frozenset[str],
) -> tuple[LearnerGroup | LearnersInTurn, Generators | GeneratorsInTurn | None]:
    """Start learner ranks and engines: at the same time, or in turns where they share GPUs."""
    learners_of = partial(make_learners, config, model_folder, teacher_folder, use_gpu=use_gpu, roles=roles)
    generators_of = partial(make_generators, config, model_folder, budget, use_gpu=use_gpu, roles=roles)
    if config.cluster.colocate:
        places = await _shared_places(config, use_gpu=use_gpu, roles=roles)
        learners = learners_of(places=places)
        await learners.start()
        await learners.leave_gpus()
        generators = generators_of(beside=(learners, places))
        await generators.start()  # last: an engine that starts measures what memory there is
        return take_turns(learners, generators, workers=config.generator.tensor_parallel_size)
    alone = generators_of() if _generates(config) else None
    learners = learners_of()
    await _start(learners, alone)
    return learners, alone


async def _shared_places(config: Config, *, use_gpu: bool, roles: frozenset[str]) -> SharedPlaces:
    """One for each generator, and the ranks whose GPUs it has."""
    workers = config.generator.tensor_parallel_size
    resources = {"CPU": 2.0 * workers, **role_resources(LEARNER, workers, roles)}
    if use_gpu:
        resources["GPU"] = float(workers)
    places = SharedPlaces(config.generator.count, resources)
    await places.reserved(config.cluster.room_deadline_s)
    return places


def make_generators(
    config: Config,
    model_folder: Path,
    budget: RestartBudget,
    *,
    use_gpu: bool,
    roles: frozenset[str],
    beside: tuple[LearnerGroup, SharedPlaces] | None = None,
) -> Generators:
    """The generators of a recipe; their engines start with `start()`.

    Args:
        beside: the ranks whose GPUs they share, and the places of both; None: they have GPUs of their own.
    """
    where = _place_beside(config, *beside) if beside else _own_place(config, use_gpu, roles)
    return Generators(
        _generator_maker(config, model_folder, use_gpu, where),
        count=config.generator.count,
        start_deadline_s=config.generator.start_deadline_s,
        install_deadline_s=config.weight_sync.deadline_s + INSTALL_ANSWER_S,
        budget=budget,
    )


def make_learners(
    config: Config,
    model_folder: Path,
    teacher_folder: Path | None,
    *,
    use_gpu: bool,
    roles: frozenset[str],
    places: SharedPlaces | None = None,
) -> LearnerGroup:
    """The learner ranks of a recipe; they start with `start()`.

    Args:
        places: in which they stand beside generators; None: wherever there is room.
    """
    workers = config.generator.tensor_parallel_size
    given = config.data.completion_column is not None
    return LearnerGroup(
        config.learner,
        replace(config.algorithm, importance_correction="none") if given else config.algorithm,  # nothing was sampled
        config.weight_sync,
        wire_dtype=config.generator.dtype,
        temperature=1.0 if given else config.generator.temperature,
        max_completion_tokens=config.generator.max_completion_tokens,
        model_folder=str(model_folder),
        seed=config.seed,
        use_gpu=use_gpu,
        resources=role_resources(LEARNER, 1, roles),
        place=(lambda rank: places.options(rank // workers)) if places else None,
        rewards=config.reward,
        optimizer_steps=config.max_steps * config.algorithm.optimizer_batches * config.algorithm.num_iterations,
        distillation=config.distillation,
        teacher_folder=str(teacher_folder) if teacher_in_ranks(config.distillation) else None,
        chat_template=config.model.chat_template,
        run=config.name,
    )


def make_weight_sync(config: Config, learners: WeightSource, generators: WeightSink) -> WeightSync:
    """Between the two, by the recipe's transport."""
    sync = config.weight_sync
    builds_on = sync.transport == "delta" or sync.lora == "adapter"
    doing = Doing(KeptGauges(run=config.name, part="weight-sync"))
    return WeightSync(learners, generators, attempts=sync.attempts, builds_on=builds_on, doing=doing)


def _given(config: Config, prepared: Prepared, roles: frozenset[str], budget: RestartBudget) -> GivenCompletions | None:
    if config.data.completion_column is None:
        return None
    actor_class = encoder_actor().options(num_cpus=small_cpus(roles))

    def make(name: str) -> Any:
        folder, template = str(prepared.model_folder), config.model.chat_template
        return actor_class.remote(name, config.generator, model_folder=folder, chat_template=template)

    return GivenCompletions(make, start_deadline_s=config.generator.start_deadline_s, budget=budget)


def _instead(given: GivenCompletions | None) -> GivenCompletions:
    """In the place of generators where none are started; nothing asks it to sample."""
    if given is None:
        raise RuntimeError("a run without generators needs given completions")
    return given


_Where = Callable[[int], tuple[dict[str, Any], str | None]]
"""Of a generator's number: actor options, and the GPUs that it shares."""


def _own_place(config: Config, use_gpu: bool, roles: frozenset[str]) -> _Where:
    workers = config.generator.tensor_parallel_size
    options = {"num_gpus": workers if use_gpu else 0, "resources": role_resources(GENERATOR, workers, roles)}
    return lambda number: (options, None)


def _place_beside(config: Config, learners: LearnerGroup, places: SharedPlaces) -> _Where:
    """With no GPU of Ray's: the ranks of the place have them."""
    workers = config.generator.tensor_parallel_size

    def where(number: int) -> tuple[dict[str, Any], str | None]:
        gpus = [gpu for gpu in learners.gpus[number * workers :][:workers] if gpu is not None]
        return {"num_gpus": 0, **places.options(number)}, ",".join(gpus) or None

    return where


def _generator_maker(config: Config, model_folder: Path, use_gpu: bool, where: _Where) -> Callable[[str], Any]:
    actor_class = generator_actor()

    def make(name: str) -> Any:
        number = int(name.rsplit("-", 1)[1])
        options, shared_gpus = where(number)
        return actor_class.options(num_cpus=config.generator.tensor_parallel_size, **options).remote(
            name,
            config.generator,
            config.weight_sync,
            model_folder=str(model_folder),
            chat_template=config.model.chat_template,
            seed=config.seed * 1000 + number,
            use_gpu=use_gpu,
            shared_gpus=shared_gpus,
            adapter=served_adapter(config.learner, config.weight_sync),
        )

    return make


def _teachers(
    config: Config, prepared: Prepared, use_gpu: bool, roles: frozenset[str], budget: RestartBudget
) -> Teachers | None:
    distillation = config.distillation
    if not teacher_scores_samples(distillation):
        return None
    workers = distillation.tensor_parallel_size
    actor_class = teacher_actor().options(
        num_cpus=workers,
        num_gpus=workers if use_gpu else 0,
        resources=role_resources(TEACHER, workers, roles),
    )

    def make(name: str) -> Any:
        return actor_class.remote(
            name,
            distillation,
            config.generator,
            config.weight_sync,
            model_folder=str(prepared.teacher_folder),
            use_gpu=use_gpu,
        )

    return Teachers(make, count=distillation.count, start_deadline_s=distillation.start_deadline_s, budget=budget)
