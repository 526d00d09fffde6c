"""One DeepSpeed rank of the learner: a plain class, and the Ray actor made of it.

A step on every rank: fetch payloads (no collective yet), then `LearnerStep`.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from funicular.actors import deepspeed_engine, hf_export, learner_state, lora, vision, weight_packing
from funicular.actors.canary import canary_of, special_tokens
from funicular.actors.config import AlgorithmConfig, LearnerConfig
from funicular.actors.distillation_config import DistillationConfig, teacher_in_ranks
from funicular.actors.doing import Doing, told
from funicular.actors.entropy_bonus import EntropyBonus
from funicular.actors.errors import RunStopped
from funicular.actors.gpu_absence import Absence
from funicular.actors.head import refuse_adapted_head
from funicular.actors.kept_gauges import KeptGauges
from funicular.actors.learner_step import LearnerStep
from funicular.actors.losses.presets import loss_settings, needs_reference, uses_entropy
from funicular.actors.model_identity import model_digest
from funicular.actors.model_shape import ModelShape, shape_of_model
from funicular.actors.payload_fetch import fetch_bucket, fetch_payloads
from funicular.actors.policy import PolicyModel, enable_gradient_checkpointing, load_causal_lm
from funicular.actors.process_memory import resident
from funicular.actors.quantization import keep_trainable, loading_options
from funicular.actors.rank_distillation import RankDistillation
from funicular.actors.rank_teacher import RankTeacher, make_rank_teacher
from funicular.actors.reference import Reference, make_reference
from funicular.actors.sequence import SequenceGroup, join_sequence_group
from funicular.actors.step_plan import RankPlan
from funicular.actors.types import KlScore, StepResult
from funicular.actors.weight_sender import WeightSender
from funicular.actors.weights import Canary, Manifest, PublishedWeights
from funicular.cluster.rendezvous import free_address

MEMORY = "funicular_learner_memory_bytes"
"""At Ray's Prometheus endpoint, with the labels `run`, `part` and `kind`."""
_REFERENCE, _ENTROPY = "reference", "entropy_bonus"
"""Sections of a checkpoint."""
_ROOM_DEADLINE_S = 30.0
"""Within which the memory of a process that was killed is free."""
_ADAPTER_KEYS = ("adapter", "lora_alpha", "lora_targets", "lora_rslora", "quantization")
"""Of `learner`; they must stay when a checkpoint is continued."""


log = logging.getLogger(__name__)


class LearnerRank:
    """One rank. Made cheaply; `start` loads the model and joins the others.

    Args:
        model_folder: the initial policy, which is the reference policy too.
        seed: initialises adapters.
        optimizer_steps: of the whole run, for a learning rate that decays to its end; None: not known.
        distillation: None: there is no teacher.
        teacher_folder: of a teacher that stands in the ranks; None: none does.
        chat_template: `model.chat_template`, for the exported model.
        run: the run's name, under which Prometheus is told what the rank does; None: nobody is told.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        config: LearnerConfig,
        algorithm: AlgorithmConfig,
        *,
        temperature: float,
        model_folder: str,
        seed: int,
        optimizer_steps: int | None = None,
        distillation: DistillationConfig | None = None,
        teacher_folder: str | None = None,
        chat_template: str = "auto",
        run: str | None = None,
    ) -> None:
        self._rank = rank
        self._gauges = KeptGauges(run=run, part=f"learner-{rank}") if run is not None else None
        self.doing = Doing(self._gauges)
        self._world_size = world_size
        self._config = config
        self._algorithm = algorithm
        self._temperature = temperature
        self._model_folder = Path(model_folder)
        self._seed = seed
        self._optimizer_steps = optimizer_steps
        self._distillation = distillation or DistillationConfig()
        self._teacher_folder = teacher_folder
        self._chat_template = chat_template
        self._teacher: RankTeacher | None = None
        loss_settings(algorithm).check()
        self._entropy_bonus = EntropyBonus(algorithm.entropy_coef, algorithm.entropy_target)
        self._step: LearnerStep | None = None
        self._lora: Any = None
        self._reference: Reference | None = None
        self._device = torch.device("cpu")
        self._engine: Any = None
        self._special_tokens: list[int] = []
        self._packed = False
        self._shares_prompts = False
        self._sequence_group: SequenceGroup | None = None
        self._sender: WeightSender | None = None
        self._absence = Absence()

    def rendezvous(self) -> tuple[str, int]:
        """Where the ranks can meet: an address on this actor's node. Asked of rank 0."""
        return free_address()

    @told
    def start(self, host: str, port: int) -> dict[str, Any]:
        """Join the process group, load the model and wrap it. Returns facts for the log.

        Raises:
            ValueError: the model or the adapters' targets are not supported.
        """
        began = time.monotonic()
        config = self._config
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(config.cpu_threads or max(1, cores // self._world_size))
        torch.manual_seed(self._seed)
        self._device = deepspeed_engine.join_process_group(
            self._rank, self._world_size, host, port, timeout_s=config.step_deadline_s
        )
        self._sequence_group = join_sequence_group(
            self._rank, self._world_size, config.sequence_parallel, timeout_s=config.step_deadline_s
        )
        if teacher_in_ranks(self._distillation) and self._teacher_folder is not None:
            self._teacher = make_rank_teacher(
                Path(self._teacher_folder),
                self._distillation,
                config,
                self._device,
                self._temperature,
                self._sequence_group,
            )
        policy = self._load_policy()
        self._packed, self._shares_prompts = policy.packed, policy.shares_prompts
        shape = _shape(policy.causal_lm) if self._device.type == "cpu" and config.quantization == "none" else None
        if config.freeze_vision and vision.reads_images(policy.causal_lm):
            vision.freeze(policy.causal_lm)
        if config.lora_rank:
            refreshed = needs_reference(self._algorithm) and self._algorithm.reference_refresh_steps > 0
            self._lora = lora.add_adapters(policy.causal_lm, config, self._seed, with_reference=refreshed)
            refuse_adapted_head(policy.causal_lm)
        if config.gradient_checkpointing:
            enable_gradient_checkpointing(policy.causal_lm)
        parameters = sum(p.numel() for p in policy.parameters())
        trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
        self._engine = self._make_engine(policy)
        if needs_reference(self._algorithm):
            self._reference = make_reference(self._engine, self._algorithm, config, self._device, self._load_policy)
        self._special_tokens = special_tokens(self._model_folder)
        if self._gauges is not None:
            self._gauges.look(self._tell_memory)
        return {
            "rank": self._rank,
            "device": str(self._device),
            "gpu": os.environ.get("CUDA_VISIBLE_DEVICES") if self._device.type == "cuda" else None,
            "threads": torch.get_num_threads(),
            "parameters": parameters,
            "trained_parameters": trained,
            "packed": self._packed,
            "shares_prompts": self._shares_prompts,
            "shape": shape,
            "seconds": time.monotonic() - began,
        }

    @told
    def fetch(self, payload_refs: Mapping[str, list[Any]]) -> tuple[str, ...]:
        """Fetch and keep the payloads of a step's groups; no collective. Returns the ids of those that are lost.

        Args:
            payload_refs: group id to references to its GroupPayload and, where teachers score, its TeacherPayload.
        """
        self._stop_sending()
        fetched, lost = fetch_payloads(payload_refs)
        self._step = LearnerStep(
            self._engine,
            self._algorithm,
            {group_id: payloads[0] for group_id, payloads in fetched.items()},
            {group_id: payloads[1] for group_id, payloads in fetched.items() if len(payloads) > 1},
            distillation=RankDistillation(self._distillation, self._teacher),
            reference=self._reference,
            entropy_coef=self._entropy_bonus.applied,
            temperature=self._temperature,
            device=self._device,
            ranks=self._world_size,
            packed=self._packed,
            counts=self._sequence_group is None or self._sequence_group.leads,
        )
        return lost

    @told
    def score(self, plan: RankPlan) -> dict[tuple[str, int], KlScore]:
        """KL to the reference policy of each of this rank's completions, before any update; all ranks together.

        What was computed stays for the step that follows.
        """
        return self._current_step().score(plan)

    @told
    def step(self, plan: RankPlan) -> StepResult:
        """Train on the fetched payloads as planned; all ranks at the same time.

        Raises:
            RunStopped: a log-probability, loss or gradient is not finite.
        """
        began = time.monotonic()
        metrics = self._current_step().run(plan)
        if uses_entropy(self._algorithm):
            metrics["policy/entropy_coef"] = self._entropy_bonus.applied
        self._entropy_bonus.end_step(metrics.get("policy/entropy"))
        self._step = None
        if self._reference is not None:
            self._reference.end_step()
        return StepResult(metrics=metrics, seconds=time.monotonic() - began)

    @told
    def pack_weights(
        self,
        version: int,
        wire_dtype: str,
        bucket_bytes: int,
        columns: int,
        canary_tokens: int,
        lora: str = "merged",
        base: PublishedWeights | None = None,
    ) -> Iterator[np.ndarray | Manifest]:
        """Rank 0 yields one (nbytes,) uint8 array per bucket, then the manifest; the others only take part.

        Args:
            lora: as `weight_sync.lora`.
            base: what was published before. A bucket is followed by its delta to that, where it is shorter; of an
                adapter's base weights nothing is packed again.
        """
        self._stop_sending()
        adapter = lora == "adapter"
        split = weight_packing.split_adapter if adapter else weight_packing.merged
        frozen, changing = split(self._causal_lm)
        yield from weight_packing.pack(
            changing,
            frozen=frozen,
            packed_before=base.manifest if adapter and base is not None else None,
            version=version,
            dtype=getattr(torch, wire_dtype),
            bucket_bytes=bucket_bytes,
            columns=columns,
            canary=lambda: self._canary(canary_tokens),
            packs=self._rank == 0,
            earlier=lambda index: None if adapter else fetch_bucket(base, index),
        )

    def send_weights(self, generator: str, workers: int, buckets: Sequence[Any], seconds: float) -> tuple[str, int]:
        """Begin to broadcast buckets to a generator's engine (`WeightSender.begin`). Asked of rank 0, by generators."""
        if self._sender is None:
            self._sender = WeightSender(self._device)
        return self._sender.begin(generator, workers, buckets, seconds)

    def _stop_sending(self) -> None:
        """Nothing is sent during a step, nor when these weights are packed anew."""
        if self._sender is not None:
            self._sender.stop()

    @told
    def save(self, folder: str) -> None:
        """Write parameters, optimizer, schedule, reference policy and random state into a folder that ranks share."""
        self._stop_sending()
        sections: dict[str, Iterable[tuple[str, torch.Tensor]]] = {_ENTROPY: self._entropy_bonus.state()}
        if self._reference is not None:
            sections[_REFERENCE] = self._reference.state()
        learner_state.save(Path(folder), self._engine, self._identity(), self._place(), sections)

    @told
    def load(self, folder: str) -> None:
        """Continue from what `save` wrote, by any number of ranks and at any ZeRO stage.

        Raises:
            ValueError: it was saved with another optimizer, other adapters or another model.
        """
        self._stop_sending()
        learner_state.load(Path(folder), self._engine, self._identity(), self._place())
        self._entropy_bonus.load_state(learner_state.Section(Path(folder), _ENTROPY))
        if self._reference is not None:
            self._reference.load_state(learner_state.Section(Path(folder), _REFERENCE))

    def mark(self, folder: str, name: str) -> str:
        """Make an empty file of this rank in a folder; the node it was made on.

        Raises:
            ValueError: it cannot be made.
        """
        node = socket.gethostname()
        try:
            (Path(folder) / f"{name}{self._rank}").touch()
        except OSError as error:
            raise ValueError(
                f"run_dir: learner rank {self._rank} on {node} cannot write to {folder} ({error}); put run_dir on a "
                "file system that all nodes share, writable for the user that Ray runs as"
            ) from error
        return node

    @told
    def export(self, folder: str) -> None:
        """Write the model in Hugging Face format, adapters merged, and besides in `adapter/`."""
        self._stop_sending()
        hf_export.export_model(
            self._causal_lm,
            weight_packing.weights_of(self._causal_lm),
            self._model_folder,
            Path(folder),
            chat_template=self._chat_template,
            lora=self._lora,
            writes=self._rank == 0,
        )
        torch.distributed.barrier()

    @told
    def leave_gpu(self) -> None:
        """Keep all tensors in the host's memory until `return_to_gpu`. On a CPU nothing moves."""
        if self._device.type == "cuda":
            self._absence.leave(self._device)

    @told
    def return_to_gpu(self) -> None:
        """Have all tensors on the device again.

        Raises:
            RunStopped: others still have its memory.
        """
        limit = time.monotonic() + _ROOM_DEADLINE_S
        while True:
            try:
                return self._absence.come_back()
            except torch.OutOfMemoryError as error:
                if time.monotonic() > limit:
                    raise RunStopped(
                        f"learner rank {self._rank}: no room on its GPU for what it keeps, {_ROOM_DEADLINE_S:.0f} s "
                        f"after its generator has left ({error}); give it less (learner.zero_stage, "
                        "learner.offload_optimizer=cpu), or set cluster.colocate=false"
                    ) from error
                time.sleep(1.0)

    def close(self) -> None:
        """Give up the engine's memory. The process group stays until the process ends."""
        self._stop_sending()
        self._engine.destroy()
        self._engine = self._reference = self._teacher = None

    @property
    def _causal_lm(self) -> Any:
        return self._engine.module.causal_lm

    def _current_step(self) -> LearnerStep:
        if self._step is None:
            raise RuntimeError("a step needs payloads: `fetch` comes first")
        return self._step

    def _tell_memory(self) -> None:
        if self._gauges is not None:
            for kind, value in memory_now(self._device).items():
                self._gauges.set(MEMORY, "Memory that the rank has now", value, kind=kind)

    def _place(self) -> learner_state.Place:
        return learner_state.Place(rank=self._rank, ranks=self._world_size, device=self._device)

    def _identity(self) -> learner_state.Identity:
        config = self._config
        keys = ("optimizer", "lora_rank", *(_ADAPTER_KEYS if config.lora_rank else ()))
        return learner_state.Identity(
            fixed={f"learner.{key}": getattr(config, key) for key in keys},
            model=model_digest(self._model_folder),
            model_folder=str(self._model_folder),
        )

    def _load_policy(self) -> PolicyModel:
        options = loading_options(self._config, self._device)
        causal_lm = load_causal_lm(self._model_folder, getattr(torch, self._config.dtype), **options)
        if options:  # quantized weights are where they belong, and may not be moved
            keep_trainable(causal_lm)
        elif self._config.zero_stage < 3:  # else it goes to the device in parts
            causal_lm.to(self._device)
        compute_dtype = getattr(torch, self._config.compute_dtype)
        return PolicyModel(
            causal_lm,
            compute_dtype=compute_dtype,
            head_dtype=self._config.head_dtype,
            packing=self._config.packing and (self._teacher is None or self._teacher.packed),
            share_prompts=self._config.share_prefix != "off"
            and (self._teacher is None or self._teacher.shares_prompts),
            offload_activations=self._config.offload_activations,
            sequence_group=self._sequence_group,
        )

    def _make_engine(self, policy: PolicyModel) -> Any:
        return deepspeed_engine.make_engine(policy, self._config, self._device, self._optimizer_steps)

    def _canary(self, count: int) -> Canary:
        return canary_of(
            self._engine,
            count,
            vocabulary=self._causal_lm.config.get_text_config().vocab_size,
            special=self._special_tokens,
            device=self._device,
            packed=self._packed,
        )


def memory_now(device: torch.device) -> dict[str, float]:
    """Bytes that this process has, of the host's memory and of its GPU's; `gpu_reserved` is what torch keeps of it."""
    found = {"host": float(resident())}
    if device.type == "cuda":
        found["gpu"] = float(torch.cuda.memory_allocated(device))
        found["gpu_reserved"] = float(torch.cuda.memory_reserved(device))
    return found


def _shape(causal_lm: Any) -> ModelShape | None:
    """None: plans cannot count this model, and its memory is not compared with one."""
    try:
        return shape_of_model(causal_lm)
    except ValueError as error:
        log.info("no plan of its memory: %s", error)
        return None
