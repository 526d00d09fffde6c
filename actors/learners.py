"""All learner ranks as one: the loop's side. Fans calls out to the ranks and waits, always with a deadline."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from funicular.actors.advantages.batch import KlScores
from funicular.actors.config import AlgorithmConfig, LearnerConfig, WeightSyncConfig
from funicular.actors.distillation_config import DistillationConfig
from funicular.actors.errors import LearnerLost, PayloadsLost
from funicular.actors.losses.presets import kl_in_reward
from funicular.actors.model_shape import ModelShape
from funicular.actors.payload_fetch import FETCH_DEADLINE_S
from funicular.actors.step_plan import StepPlan, plan_scoring, plan_step
from funicular.actors.types import KlScore, ScoredGroup, StepResult
from funicular.actors.weights import Manifest, PublishedWeights, assemble
from funicular.cluster.calls import DeadlineExceeded, call
from funicular.rewards.config import RewardConfig

log = logging.getLogger(__name__)

_ANSWER_DEADLINE_S = 60.0
"""Beyond what the ranks allow themselves."""
_SHARED_FOLDER_DEADLINE_S = 30.0
"""Within which a shared file system shows on one node what another has written."""
_DEATH_NOTICE_S = 15.0
"""Within which Ray tells of an actor that died."""


class LearnerGroup:
    """Learner ranks as one service.

    Args:
        wire_dtype: the generators' type, in which weights are published.
        temperature: the generators' sampling temperature.
        max_completion_tokens: the configured limit; the constant of dr_grpo.
        model_folder: the initial policy, readable on every node.
        seed: initialises adapters.
        use_gpu: one GPU for each rank.
        resources: what each rank asks of Ray besides.
        place: where Ray is to put a rank, among actor options; None: where there is room.
        optimizer_steps: of the whole run, for a learning rate that decays to its end; None: not known.
        rewards: names, weights and gates of the reward functions.
        distillation: None: there is no teacher.
        teacher_folder: of a teacher that stands in the ranks, readable on every node; None: none does.
        chat_template: `model.chat_template`, for the exported model.
        run: the run's name, under which Prometheus is told what the ranks do; None: nobody is told.
    """

    def __init__(
        self,
        config: LearnerConfig,
        algorithm: AlgorithmConfig,
        sync: WeightSyncConfig,
        *,
        wire_dtype: str,
        temperature: float,
        max_completion_tokens: int,
        model_folder: str,
        seed: int,
        use_gpu: bool,
        resources: Mapping[str, float] | None = None,
        place: Callable[[int], dict[str, Any]] | None = None,
        optimizer_steps: int | None = None,
        rewards: RewardConfig,
        distillation: DistillationConfig | None = None,
        teacher_folder: str | None = None,
        chat_template: str = "auto",
        run: str | None = None,
    ) -> None:
        self._config = config
        self._algorithm = algorithm
        self._sync = sync
        self._wire_dtype = wire_dtype
        self._temperature = temperature
        self._max_completion_tokens = max_completion_tokens
        self._model_folder = model_folder
        self._seed = seed
        self._use_gpu = use_gpu
        self._resources = dict(resources or {})
        self._place = place or (lambda rank: {})
        self._optimizer_steps = optimizer_steps
        self._rewards = rewards
        self._distillation = distillation or DistillationConfig()
        self._teacher_folder = teacher_folder
        self._run = run
        self._chat_template = chat_template
        self._actors: list[Any] = []
        self._packed = False
        self._shares_prompts = False
        self.gpus: tuple[str | None, ...] = ()
        """What each rank calls its GPU in CUDA_VISIBLE_DEVICES, once they have started; None: it has none."""
        self.model_shape: ModelShape | None = None
        """What a plan of the ranks' memory counts with; None before the start, on GPUs, and of models that plans do
        not know."""

    async def start(self) -> None:
        """Start all ranks with the initial model.

        Raises:
            LearnerLost: a rank died or did not start in time.
            ValueError: the model or its settings are not supported.
        """
        self._actors = [self._make_actor(rank) for rank in range(self._config.ranks)]
        deadline = self._config.start_deadline_s
        address = await self._one(self._actors[0].rendezvous.remote(), "rank 0 to find a port", deadline)
        started = await self._all("the ranks to start", deadline, "start", *address)
        self.gpus = tuple(info["gpu"] for info in started)
        for info in started:
            # The same on every rank, which all have the same model.
            self._packed, self._shares_prompts = info["packed"], info["shares_prompts"]
            self.model_shape = info["shape"]
            log.info("learner rank %(rank)s on %(device)s: started in %(seconds).0f s", info)
            if self._use_gpu and not info["device"].startswith("cuda"):
                raise ValueError(
                    f"cluster.use_gpu: learner rank {info['rank']} runs on {info['device']}; install a CUDA build "
                    "of torch on every node (FUNICULAR_EXTRA=cuda), or set cluster.use_gpu=false"
                )

    async def restart(self) -> None:
        """Replace every rank by a fresh one with the initial model."""
        self.shutdown()
        await self.start()

    async def step(self, step: int, groups: Sequence[ScoredGroup]) -> StepResult:
        """Train on one batch.

        Raises:
            PayloadsLost: before anything was computed.
            LearnerLost: a rank died, or missed the deadline.
            RunStopped: a value is not finite.
        """
        began = time.monotonic()
        if kl_in_reward(self._algorithm):
            scoring = plan_scoring(groups, *self._cut, **self._passes, distillation=self._distillation)
            scoring = scoring.shared(self._config.sequence_parallel)
            await self._fetch(scoring, groups)
            plan = self._plan(groups, await self._kl(scoring, step))
        else:
            plan = self._plan(groups, None)
            await self._fetch(plan, groups)
        calls = [actor.step.remote(rank) for actor, rank in zip(self._actors, plan.ranks, strict=True)]
        results = await self._gather(calls, f"step {step}", self._config.step_deadline_s)
        metrics = {**results[0].metrics, **plan.metrics}
        return StepResult(metrics=metrics, seconds=time.monotonic() - began)

    async def pack(self, version: int, base: PublishedWeights | None = None) -> PublishedWeights:
        """Gather and pack the current weights; the caller owns the buckets.

        Args:
            base: what was published before, to build on; None: everything is packed, and whole.

        Raises:
            LearnerLost: a rank died, or missed the deadline.
        """
        arguments = (
            version,
            self._wire_dtype,
            self._sync.bucket_mib << 20,
            self._sync.columns,
            self._sync.canary_tokens,
            self._sync.lora,
            base,
        )
        streams = [actor.pack_weights.options(num_returns="streaming").remote(*arguments) for actor in self._actors]
        what = f"packing version {version}"
        refs, *_ = await self._gather(list(map(drain, streams)), what, self._config.step_deadline_s)
        manifest = await self._one(refs[-1], what, _ANSWER_DEADLINE_S)
        if not isinstance(manifest, Manifest):
            raise LearnerLost(f"{what}: rank 0 ended after {len(refs)} objects without a manifest")
        kept = base.buckets[: manifest.frozen_buckets] if base and manifest.frozen_version != version else ()
        sender = self._actors[0] if self._sync.transport == "broadcast" else None
        return assemble(manifest, refs[:-1], kept, sender)

    async def save(self, folder: str) -> None:
        """Write a snapshot that `load` continues from."""
        await self._all(f"saving to {folder}", self._config.step_deadline_s, "save", folder)

    async def load(self, folder: str) -> None:
        """Continue from a snapshot."""
        await self._all(f"loading {folder}", self._config.step_deadline_s, "load", folder)

    async def check_folder(self, folder: Path) -> None:
        """Make sure that all ranks write where this process reads, as checkpoints need it.

        Raises:
            ValueError: a rank cannot write there, or its files are not seen here.
        """
        name = f".seen-{uuid.uuid4().hex}-"
        nodes = await self._all(f"writing to {folder}", _ANSWER_DEADLINE_S, "mark", str(folder), name)
        for rank, node in enumerate(nodes):
            mark = folder / f"{name}{rank}"
            limit = time.monotonic() + _SHARED_FOLDER_DEADLINE_S
            while not mark.exists():
                if time.monotonic() > limit:
                    raise ValueError(
                        f"run_dir: what learner rank {rank} writes to {folder} on {node} is not seen on "
                        f"{socket.gethostname()}; put run_dir on a file system that all nodes share"
                    )
                await asyncio.sleep(0.2)
            mark.unlink()

    async def leave_gpus(self) -> None:
        """Free the GPUs' memory: what the ranks keep waits in the host's. Nothing else may be asked before the return.

        Raises:
            LearnerLost: a rank died, or missed the deadline.
        """
        await self._all("the ranks to leave their GPUs", self._config.step_deadline_s, "leave_gpu")

    async def return_to_gpus(self) -> None:
        """Take the GPUs' memory again; raises as `leave_gpus`."""
        await self._all("the ranks to return to their GPUs", self._config.step_deadline_s, "return_to_gpu")

    async def export(self, folder: str) -> None:
        """Write the model in Hugging Face format."""
        await self._all(f"exporting to {folder}", self._config.step_deadline_s, "export", folder)

    def shutdown(self) -> None:
        """Kill all ranks."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def _make_actor(self, rank: int) -> Any:
        from funicular.actors.learner import LearnerRank  # here, because it loads torch

        actor = ray.remote(LearnerRank).options(
            num_cpus=1,  # one whatever its threads: `learner.cpu_threads` says those
            num_gpus=1 if self._use_gpu else 0,
            resources=self._resources,
            max_restarts=0,  # a rank alone cannot come back: the group restarts
            max_task_retries=0,
            **self._place(rank),
        )
        return actor.remote(
            rank,
            self._config.ranks,
            self._config,
            self._algorithm,
            temperature=self._temperature,
            model_folder=self._model_folder,
            seed=self._seed,
            optimizer_steps=self._optimizer_steps,
            distillation=self._distillation,
            teacher_folder=self._teacher_folder,
            chat_template=self._chat_template,
            run=self._run,
        )

    @property
    def _cut(self) -> tuple[AlgorithmConfig, int, int, int]:
        """What a plan depends on besides the groups. Ranks that share a pass are planned as one that has their room."""
        config, share = self._config, self._config.sequence_parallel
        ranks, tokens = config.ranks // share, config.micro_batch_tokens * share
        return self._algorithm, ranks, tokens, self._max_completion_tokens

    @property
    def _passes(self) -> dict[str, Any]:
        """How rows stand in passes."""
        return {
            "packed": self._packed,
            "share_prompts": self._config.share_prefix if self._shares_prompts else "off",
        }

    def _plan(self, groups: Sequence[ScoredGroup], kl: KlScores | None) -> StepPlan:
        plan = plan_step(
            groups, *self._cut, **self._passes, rewards=self._rewards, distillation=self._distillation, kl=kl
        )
        return plan.shared(self._config.sequence_parallel)

    async def _kl(self, plan: StepPlan, step: int) -> dict[tuple[str, int], KlScore]:
        """KL to the reference policy of each completion; the ranks keep what they computed for it."""
        calls = [actor.score.remote(rank) for actor, rank in zip(self._actors, plan.ranks, strict=True)]
        scores = await self._gather(calls, f"scoring step {step}", self._config.step_deadline_s)
        return {row: score for of_rank in scores for row, score in of_rank.items()}

    async def _fetch(self, plan: StepPlan, groups: Sequence[ScoredGroup]) -> None:
        """Have every rank fetch what it needs, and agree that all have, before any collective."""
        payloads = {group.group_id: [group.payload] for group in groups}
        for group in groups:
            if group.teaching is not None:
                payloads[group.group_id].append(group.teacher_payload)
        calls = [
            actor.fetch.remote({group_id: payloads[group_id] for group_id in rank.group_ids})
            for actor, rank in zip(self._actors, plan.ranks, strict=True)
        ]
        lost = await self._gather(calls, "payloads to be fetched", FETCH_DEADLINE_S + _ANSWER_DEADLINE_S)
        if ids := tuple(group_id for of_rank in lost for group_id in of_rank):
            raise PayloadsLost(ids)

    async def _all(self, what: str, deadline_s: float, method: str, *arguments: Any) -> list[Any]:
        calls = [getattr(actor, method).remote(*arguments) for actor in self._actors]
        return await self._gather(calls, what, deadline_s)

    async def _gather(self, calls: Sequence[Awaitable[Any]], what: str, deadline_s: float) -> list[Any]:
        """Await one call per rank. The first to fail counts: its peers hang in a collective until they are killed."""
        tasks = [
            asyncio.create_task(self._one(ref, f"{what} (rank {rank})", deadline_s)) for rank, ref in enumerate(calls)
        ]
        try:
            done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            errors = _errors(done)
            if errors and pending and not any(isinstance(error, LearnerLost) for error in errors):
                # A broken connection shows on the survivors before the death of the other end is known.
                done, _ = await asyncio.wait(tasks, timeout=_DEATH_NOTICE_S, return_when=asyncio.ALL_COMPLETED)
                errors = _errors(done)
            if errors:
                raise next((error for error in errors if isinstance(error, LearnerLost)), errors[0])
            return [task.result() for task in tasks]
        finally:
            for task in tasks:
                task.cancel()

    async def _one(self, ref: Awaitable[Any], what: str, deadline_s: float) -> Any:
        try:
            return await call(ref, deadline_s=deadline_s, what=f"the learner: {what}")
        except (RayActorError, DeadlineExceeded) as error:
            raise LearnerLost(f"{what}: {str(error).splitlines()[0]}") from error


def _errors(done: Iterable[asyncio.Task[Any]]) -> list[BaseException]:
    return [error for task in done if (error := task.exception()) is not None]


async def drain(stream: Any) -> list[Any]:
    """The references that a streaming call yields; what it raised, if it did, is raised by the last."""
    refs = [ref async for ref in stream]
    if refs:
        await refs[-1]
    return refs
