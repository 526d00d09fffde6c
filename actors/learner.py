"""One DeepSpeed rank of the learner: a plain class, and the Ray actor made of it.

A step on every rank: fetch payloads (no collective yet) -> old log-probabilities, if there will be several updates ->
per optimizer batch: micro-batches forward and backward, agree that all values are finite, optimizer step.
Every rank makes the same collectives in the same order, whatever rows it has (packing.py).
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from funicular.actors import deepspeed_engine, hf_export, lora, weight_packing
from funicular.actors.collate import Batch, collate, token_batch
from funicular.actors.config import AlgorithmConfig, LearnerConfig
from funicular.actors.errors import RunStopped
from funicular.actors.head import refuse_adapted_head
from funicular.actors.loss import importance_weights_of, kl_terms, policy_loss_terms
from funicular.actors.packing import MicroBatch, RankPlan
from funicular.actors.payload_fetch import fetch_payloads
from funicular.actors.policy import PolicyModel, enable_gradient_checkpointing, load_causal_lm
from funicular.actors.step_sums import StepSums
from funicular.actors.types import GroupPayload, StepResult
from funicular.actors.weights import Canary, Manifest
from funicular.cluster.rendezvous import free_address

_STATE_FILE = "learner.json"
_TAG = "state"


class LearnerRank:
    """One rank. Made cheaply; `start` loads the model and joins the others.

    Args:
        model_folder: the initial policy, which is the reference policy too.
        seed: initialises adapters.
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
    ) -> None:
        self._rank = rank
        self._world_size = world_size
        self._config = config
        self._algorithm = algorithm
        self._temperature = temperature
        self._model_folder = Path(model_folder)
        self._seed = seed
        self._payloads: dict[str, GroupPayload] = {}
        self._lora: Any = None
        self._reference: PolicyModel | None = None
        self._device = torch.device("cpu")
        self._engine: Any = None
        self._special_tokens: list[int] = []

    def rendezvous(self) -> tuple[str, int]:
        """Where the ranks can meet: an address on this actor's node. Asked of rank 0."""
        return free_address()

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
        policy = self._load_policy()
        if config.lora_rank:
            self._lora = lora.add_adapters(policy.causal_lm, config, self._seed)
            refuse_adapted_head(policy.causal_lm)
        elif self._algorithm.beta > 0:
            self._reference = self._load_policy().requires_grad_(False)
        if config.gradient_checkpointing:
            enable_gradient_checkpointing(policy.causal_lm)
        parameters = sum(p.numel() for p in policy.parameters())
        trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
        self._engine = deepspeed_engine.make_engine(policy, config, self._device)
        self._special_tokens = _special_tokens(self._model_folder)
        return {
            "rank": self._rank,
            "device": str(self._device),
            "threads": torch.get_num_threads(),
            "parameters": parameters,
            "trained_parameters": trained,
            "seconds": time.monotonic() - began,
        }

    def fetch(self, payload_refs: Mapping[str, list[Any]]) -> tuple[str, ...]:
        """Fetch and keep the payloads of a step's groups; no collective. Returns the ids of those that are lost."""
        self._payloads, lost = fetch_payloads(payload_refs)
        return lost

    def step(self, plan: RankPlan) -> StepResult:
        """Train on the fetched payloads as planned; all ranks at the same time.

        Raises:
            RunStopped: a log-probability, loss or gradient is not finite.
        """
        began = time.monotonic()
        sums = StepSums(self._algorithm, self._device)
        learning_rate = self._engine.get_lr()[0]
        old_logprobs = self._old_logprobs(plan, sums)
        norms = []
        for index, micro_batches in enumerate(plan.optimizer_batches):
            if not micro_batches:  # on all ranks: nothing to learn
                continue
            learning_rate = self._engine.get_lr()[0]
            norms.append(self._optimizer_batch(micro_batches, old_logprobs.get(index), sums))
        self._payloads = {}
        metrics = sums.metrics(optimizer_batches=len(plan.optimizer_batches), peak_memory_bytes=_peak_memory())
        metrics |= {"policy/optimizer_steps": float(len(norms)), "policy/learning_rate": float(learning_rate)}
        if norms:
            metrics["policy/grad_norm"] = sum(norms) / len(norms)
        return StepResult(metrics=metrics, seconds=time.monotonic() - began)

    def pack_weights(
        self, version: int, wire_dtype: str, bucket_bytes: int, columns: int, canary_tokens: int
    ) -> Iterator[np.ndarray | Manifest]:
        """Rank 0 yields one (nbytes,) uint8 array per bucket, then the manifest; the others only take part."""
        yield from weight_packing.pack(
            weight_packing.weights_of(self._causal_lm),
            version=version,
            dtype=getattr(torch, wire_dtype),
            bucket_bytes=bucket_bytes,
            columns=columns,
            canary=lambda: self._canary(canary_tokens),
            packs=self._rank == 0,
        )

    def save(self, folder: str) -> None:
        """Write parameters, optimizer, scheduler and random state into a folder that all ranks share."""
        path = Path(folder)
        self._engine.save_checkpoint(folder, tag=_TAG, exclude_frozen_parameters=self._lora is not None)
        torch.save(torch.get_rng_state(), path / f"random_rank{self._rank}.pt")
        if self._rank == 0:
            (path / _STATE_FILE).write_text(json.dumps(self._shape()) + "\n")
        torch.distributed.barrier()

    def load(self, folder: str) -> None:
        """Continue from what `save` wrote.

        Raises:
            ValueError: it was saved by another number of ranks, ZeRO stage, optimizer, type or LoRA rank.
        """
        path = Path(folder)
        saved = json.loads((path / _STATE_FILE).read_text())
        for key, value in self._shape().items():
            if saved[key] != value:
                raise ValueError(
                    f"learner.{key}: the checkpoint {folder} was saved with {saved[key]!r}, this run has {value!r}; "
                    f"set learner.{key}={saved[key]} to continue it, or start from its exported model"
                )
        loaded, _ = self._engine.load_checkpoint(folder, tag=_TAG, load_module_strict=self._lora is None)
        if loaded is None:
            raise ValueError(f"{folder}: DeepSpeed found no checkpoint in {path / _TAG}")
        torch.set_rng_state(torch.load(path / f"random_rank{self._rank}.pt"))

    def export(self, folder: str) -> None:
        """Write the model in Hugging Face format, adapters merged, and besides in `adapter/`."""
        hf_export.export_model(
            self._causal_lm,
            weight_packing.weights_of(self._causal_lm),
            self._model_folder,
            Path(folder),
            lora=self._lora,
            writes=self._rank == 0,
        )
        torch.distributed.barrier()

    def close(self) -> None:
        """Give up the engine's memory. The process group stays until the process ends."""
        self._engine.destroy()
        self._engine = None

    @property
    def _causal_lm(self) -> Any:
        return self._engine.module.causal_lm

    def _shape(self) -> dict[str, Any]:
        """What a checkpoint can only be loaded into."""
        config = self._config
        return {
            "ranks": self._world_size,
            "zero_stage": config.zero_stage,
            "dtype": config.dtype,
            "optimizer": config.optimizer,
            "lora_rank": config.lora_rank,
        }

    def _load_policy(self) -> PolicyModel:
        causal_lm = load_causal_lm(self._model_folder, getattr(torch, self._config.dtype)).to(self._device)
        compute_dtype = getattr(torch, self._config.compute_dtype)
        return PolicyModel(causal_lm, compute_dtype=compute_dtype, head_dtype=self._config.head_dtype)

    def _collate(self, micro: MicroBatch) -> Batch:
        return collate(micro, self._payloads, self._device)

    def _score(self, model: Any, batch: Batch, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        return model(
            batch.input_ids,
            batch.attention_mask,
            batch.position_ids,
            batch.selection,
            temperature=temperature,
        )

    @torch.no_grad()
    def _old_logprobs(self, plan: RankPlan, sums: StepSums) -> dict[int, list[torch.Tensor]]:
        """Log-probabilities before the first update, of the optimizer batches that come after one.

        The first to be updated needs none: its own forward pass gives the same numbers.
        """
        later = [index for index, micro_batches in enumerate(plan.optimizer_batches) if micro_batches][1:]
        old: dict[int, list[torch.Tensor]] = {}
        for index in later:
            batches = map(self._collate, plan.optimizer_batches[index])
            old[index] = [self._score(self._engine, batch, self._temperature)[0] for batch in batches]
            sums.check_finite(*old[index])
        return old

    @torch.no_grad()
    def _reference_logprobs(self, batch: Batch) -> torch.Tensor | None:
        if self._algorithm.beta == 0:
            return None
        if self._reference is not None:
            return self._score(self._reference, batch, self._temperature)[0]
        lora.switch_adapters(self._causal_lm, on=False)
        logprobs, _ = self._score(self._engine, batch, self._temperature)
        lora.switch_adapters(self._causal_lm, on=True)
        return logprobs

    def _optimizer_batch(
        self, micro_batches: tuple[MicroBatch, ...], old_logprobs: list[torch.Tensor] | None, sums: StepSums
    ) -> float:
        """Sum the gradients of all micro-batches and apply them. Returns the gradient's norm before clipping."""
        last = len(micro_batches) - 1
        for index, micro in enumerate(micro_batches):
            self._engine.set_gradient_accumulation_boundary(index == last)
            self._micro_batch(self._collate(micro), None if old_logprobs is None else old_logprobs[index], sums)
        if bad := sums.nonfinite_on_all_ranks():
            raise RunStopped(
                f"{bad} log-probabilities or losses of the learner are not finite; nothing was updated or published. "
                "Look at policy/grad_norm and policy/ratio_max of the steps before; a lower learner.learning_rate, "
                "or learner.max_grad_norm above 0, usually helps"
            )
        norm = deepspeed_engine.apply_gradients(self._engine)
        if not np.isfinite(norm):
            raise RunStopped(f"the gradient's norm is {norm}; nothing was published since the last step")
        return norm

    def _micro_batch(self, batch: Batch, old_logprobs: torch.Tensor | None, sums: StepSums) -> None:
        algorithm = self._algorithm
        reference = self._reference_logprobs(batch)
        logprobs, entropy = self._score(self._engine, batch, self._temperature)
        old = logprobs.detach() if old_logprobs is None else old_logprobs
        cap = algorithm.importance_cap
        weights = None if cap is None else importance_weights_of(old, batch.generator_logprobs, cap)
        terms = policy_loss_terms(
            logprobs,
            old,
            batch.advantages,
            epsilon_low=algorithm.epsilon_low,
            epsilon_high=algorithm.epsilon_high,
            delta=algorithm.delta,
            importance_weights=weights,
            reference_logprobs=reference,
            beta=algorithm.beta,
            kl_estimator=algorithm.kl_estimator,
        )
        loss = (terms * batch.token_weights).sum()
        deepspeed_engine.backward(self._engine, loss, self._world_size)
        sums.check_finite(logprobs, reference, loss)
        if batch.is_empty:
            return
        kl = None
        if reference is not None:
            ratio = torch.ones_like(old)
            kl = kl_terms(logprobs.detach(), reference, ratio=ratio, kl_estimator="k3")
        sums.add(
            batch,
            loss=loss.detach(),
            logprobs=logprobs.detach(),
            old_logprobs=old,
            entropy=entropy,
            importance_weights=weights,
            kl=kl,
        )

    @torch.no_grad()
    def _canary(self, count: int) -> Canary:
        vocabulary = self._causal_lm.config.vocab_size
        token_ids = weight_packing.canary_tokens(count, vocabulary, self._special_tokens)
        logprobs, _ = self._score(self._engine, token_batch(list(token_ids), self._device), temperature=1.0)
        return Canary(token_ids=token_ids, logprobs=tuple(logprobs.tolist()))


def _special_tokens(folder: Path) -> list[int]:
    """Special ids of the folder's tokenizer, and rows of the embedding that no token has."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    vocabulary = AutoConfig.from_pretrained(str(folder)).vocab_size
    return [*tokenizer.all_special_ids, *range(len(tokenizer), vocabulary)]


def _peak_memory() -> float:
    """Largest resident memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
