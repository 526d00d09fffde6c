"""One DeepSpeed rank of the learner: a plain class, and the Ray actor made of it.

A step on every rank: fetch payloads (no collective yet) -> forward passes before the first update, if old log-
probabilities, entropies or a KL term in the reward need them -> per optimizer batch: micro-batches forward and
backward, agree that all values are finite, optimizer step.
Every rank makes the same collectives in the same order, whatever rows it has (packing.py).
"""

from __future__ import annotations

import itertools
import os
import resource
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from funicular.actors import deepspeed_engine, hf_export, learner_state, lora, weight_packing
from funicular.actors.collate import Batch, collate, token_batch
from funicular.actors.config import AlgorithmConfig, LearnerConfig
from funicular.actors.entropy_cut import EntropyCut, agree_on_cut
from funicular.actors.errors import RunStopped
from funicular.actors.head import refuse_adapted_head
from funicular.actors.losses.kl import kl_to_go
from funicular.actors.losses.presets import kl_in_reward, loss_settings, needs_reference, preset_of
from funicular.actors.losses.token_losses import LossInputs, token_losses
from funicular.actors.model_identity import model_digest
from funicular.actors.packing import MicroBatch
from funicular.actors.payload_fetch import fetch_payloads
from funicular.actors.policy import PolicyModel, enable_gradient_checkpointing, load_causal_lm
from funicular.actors.quantization import keep_trainable, loading_options
from funicular.actors.reference import Reference, make_reference
from funicular.actors.row_scores import RowScores
from funicular.actors.step_plan import RankPlan
from funicular.actors.step_sums import StepSums
from funicular.actors.types import GroupPayload, KlScore, StepResult
from funicular.actors.weights import Canary, Manifest
from funicular.cluster.rendezvous import free_address

_REFERENCE = "reference"
"""Section of a checkpoint."""
_ADAPTER_KEYS = ("adapter", "lora_alpha", "lora_targets", "lora_rslora", "quantization")
"""Of `learner`; they must stay when a checkpoint is continued."""


class LearnerRank:
    """One rank. Made cheaply; `start` loads the model and joins the others.

    Args:
        model_folder: the initial policy, which is the reference policy too.
        seed: initialises adapters.
        optimizer_steps: of the whole run, for a learning rate that decays to its end; None: not known.
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
    ) -> None:
        self._rank = rank
        self._world_size = world_size
        self._config = config
        self._algorithm = algorithm
        self._temperature = temperature
        self._model_folder = Path(model_folder)
        self._seed = seed
        self._optimizer_steps = optimizer_steps
        self._settings = loss_settings(algorithm)
        self._settings.check()
        self._payloads: dict[str, GroupPayload] = {}
        self._before = RowScores()
        self._lora: Any = None
        self._reference: Reference | None = None
        self._device = torch.device("cpu")
        self._engine: Any = None
        self._special_tokens: list[int] = []
        self._packed = False

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
        self._packed = policy.packed
        if config.lora_rank:
            refreshed = needs_reference(self._algorithm) and self._algorithm.reference_refresh_steps > 0
            self._lora = lora.add_adapters(policy.causal_lm, config, self._seed, with_reference=refreshed)
            refuse_adapted_head(policy.causal_lm)
        if config.gradient_checkpointing:
            enable_gradient_checkpointing(policy.causal_lm)
        parameters = sum(p.numel() for p in policy.parameters())
        trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
        self._engine = deepspeed_engine.make_engine(policy, config, self._device, self._optimizer_steps)
        if needs_reference(self._algorithm):
            self._reference = make_reference(self._engine, self._algorithm, config, self._device, self._load_policy)
        self._special_tokens = _special_tokens(self._model_folder)
        return {
            "rank": self._rank,
            "device": str(self._device),
            "threads": torch.get_num_threads(),
            "parameters": parameters,
            "trained_parameters": trained,
            "packed": self._packed,
            "seconds": time.monotonic() - began,
        }

    def fetch(self, payload_refs: Mapping[str, list[Any]]) -> tuple[str, ...]:
        """Fetch and keep the payloads of a step's groups; no collective. Returns the ids of those that are lost."""
        self._before = RowScores()
        self._payloads, lost = fetch_payloads(payload_refs)
        return lost

    @torch.no_grad()
    def score(self, plan: RankPlan) -> dict[tuple[str, int], KlScore]:
        """KL to the reference policy of each of this rank's completions, before any update; all ranks together.

        What was computed stays for the step that follows.
        """
        for micro in itertools.chain.from_iterable(plan.optimizer_batches):
            batch = self._collate(micro)
            old, entropies = self._score(self._engine, batch, self._temperature)
            self._before.put(batch, old=old, entropies=entropies, reference=self._reference_logprobs(batch))
        self._before.complete = True
        return self._before.kl()

    def step(self, plan: RankPlan) -> StepResult:
        """Train on the fetched payloads as planned; all ranks at the same time.

        Raises:
            RunStopped: a log-probability, loss or gradient is not finite.
        """
        began = time.monotonic()
        sums = StepSums(self._settings, self._device)
        learning_rate = self._engine.get_lr()[0]
        self._score_before_updates(plan, sums)
        norms = []
        passes = list(enumerate(plan.optimizer_batches)) * self._algorithm.num_iterations
        for index, micro_batches in passes:
            if not micro_batches:  # on all ranks: nothing to learn
                continue
            learning_rate = self._engine.get_lr()[0]
            norms.append(self._optimizer_batch(micro_batches, self._cut(micro_batches, plan, index), sums))
        self._payloads, self._before = {}, RowScores()
        if self._reference is not None:
            self._reference.end_step()
        metrics = sums.metrics(optimizer_batches=len(passes), peak_memory_bytes=_peak_memory())
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
        """Write parameters, optimizer, schedule, reference policy and random state into a folder that ranks share."""
        sections = {_REFERENCE: self._reference.state()} if self._reference else {}
        learner_state.save(Path(folder), self._engine, self._identity(), self._place(), sections)

    def load(self, folder: str) -> None:
        """Continue from what `save` wrote, by any number of ranks and at any ZeRO stage.

        Raises:
            ValueError: it was saved with another optimizer, other adapters or another model.
        """
        learner_state.load(Path(folder), self._engine, self._identity(), self._place())
        if self._reference is not None:
            self._reference.load_state(learner_state.Section(Path(folder), _REFERENCE))

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
        self._engine = self._reference = None

    @property
    def _causal_lm(self) -> Any:
        return self._engine.module.causal_lm

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
        else:
            causal_lm.to(self._device)
        compute_dtype = getattr(torch, self._config.compute_dtype)
        return PolicyModel(
            causal_lm,
            compute_dtype=compute_dtype,
            head_dtype=self._config.head_dtype,
            packing=self._config.packing,
            offload_activations=self._config.offload_activations,
        )

    def _collate(self, micro: MicroBatch) -> Batch:
        return collate(micro, self._payloads, self._device, packed=self._packed)

    def _score(self, model: Any, batch: Batch, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        return model(
            batch.input_ids,
            batch.attention_mask,
            batch.position_ids,
            batch.selection,
            temperature=temperature,
            row_lengths=batch.row_lengths,
        )

    @torch.no_grad()
    def _score_before_updates(self, plan: RankPlan, sums: StepSums) -> None:
        """Keep what the policy says before the first update, of all that needs it and was not scored yet.

        That is everything where entropies decide what is trained. Else the optimizer batches after the first update:
        the one that is updated first needs nothing, because its own forward pass gives the same numbers. With several
        passes over the batch, it keeps them.
        """
        wanted = [index for index, micro_batches in enumerate(plan.optimizer_batches) if micro_batches]
        if self._algorithm.top_entropy_quantile == 1:
            bypass = preset_of(self._algorithm).old_logprobs == "generator"
            wanted = [] if bypass or kl_in_reward(self._algorithm) else wanted[1:]
        for micro in (micro for index in wanted for micro in plan.optimizer_batches[index]):
            batch = self._collate(micro)
            old, entropies = self._score(self._engine, batch, self._temperature)
            self._before.put(batch, old=old, entropies=entropies)
            sums.check_finite(old)

    def _cut(self, micro_batches: tuple[MicroBatch, ...], plan: RankPlan, index: int) -> EntropyCut:
        """Which tokens of an optimizer batch the policy term and the entropy bonus are over; a collective."""
        quantile = self._algorithm.top_entropy_quantile
        if quantile == 1:
            return EntropyCut(threshold=None, tokens=plan.normalisers[index].tokens)
        kept = [self._before.entropies(self._collate(micro)) for micro in micro_batches]
        return agree_on_cut([entropies for entropies in kept if entropies is not None], quantile, self._device)

    @torch.no_grad()
    def _reference_logprobs(self, batch: Batch) -> torch.Tensor | None:
        if self._reference is None:
            return None
        if kl_in_reward(self._algorithm) and self._before.complete:  # on all ranks, those without rows too
            return self._before.reference(batch)
        with self._reference.scoring() as model:
            return self._score(model, batch, self._temperature)[0]

    def _optimizer_batch(self, micro_batches: tuple[MicroBatch, ...], cut: EntropyCut, sums: StepSums) -> float:
        """Sum the gradients of all micro-batches and apply them. Returns the gradient's norm before clipping."""
        last = len(micro_batches) - 1
        for index, micro in enumerate(micro_batches):
            self._engine.set_gradient_accumulation_boundary(index == last)
            self._micro_batch(self._collate(micro), cut, sums)
        if bad := sums.nonfinite_on_all_ranks():
            raise RunStopped(
                f"{bad} log-probabilities or losses are not finite; nothing was updated or published. "
                "Look at policy/grad_norm and policy/ratio_max of the steps before; a lower learner.learning_rate, "
                "or learner.max_grad_norm above 0, usually helps"
            )
        norm = deepspeed_engine.apply_gradients(self._engine)
        if not np.isfinite(norm):
            raise RunStopped(f"the gradient's norm is {norm}; nothing was published since the last step")
        return norm

    def _micro_batch(self, batch: Batch, cut: EntropyCut, sums: StepSums) -> None:
        settings = self._settings
        reference = self._reference_logprobs(batch)
        logprobs, entropy = self._score(self._engine, batch, self._temperature)
        before = self._before.old(batch)
        learner = logprobs.detach() if before is None else before
        bypass = preset_of(self._algorithm).old_logprobs == "generator"
        if before is None and not bypass and self._algorithm.num_iterations > 1:  # the first optimizer batch
            self._before.put(batch, old=logprobs, entropies=entropy)
        advantages = batch.advantages
        if batch.kl_weight and reference is not None:
            advantages = advantages + (batch.kl_weight * kl_to_go(learner - reference, batch.segments)).float()
        entropies_before = self._before.entropies(batch)
        in_policy_term = cut.keeps(entropy.detach() if entropies_before is None else entropies_before)
        terms = token_losses(
            LossInputs(
                logprobs=logprobs,
                old_logprobs=batch.generator_logprobs if bypass else learner,
                advantages=advantages,
                segments=batch.segments,
                generator_logprobs=batch.generator_logprobs,
                reference_logprobs=reference,
                in_policy_term=in_policy_term,
            ),
            settings,
        )
        loss = (terms.losses * batch.token_weights).sum()
        if settings.entropy_coef > 0 and not batch.is_empty:
            counted = entropy if in_policy_term is None else entropy[in_policy_term]
            loss = loss - settings.entropy_coef * counted.sum() / cut.tokens
        deepspeed_engine.backward(self._engine, loss, self._world_size)
        # The generator's too: completions where one is missing are void, and never come here (law 4).
        sums.check_finite(logprobs, reference, loss, batch.generator_logprobs)
        if batch.is_empty:
            return
        sums.add(
            batch,
            terms,
            loss=loss.detach(),
            learner_logprobs=learner,
            advantages=advantages,
            entropy=entropy.detach(),
            in_policy_term=in_policy_term,
        )

    @torch.no_grad()
    def _canary(self, count: int) -> Canary:
        vocabulary = self._causal_lm.config.vocab_size
        token_ids = weight_packing.canary_tokens(count, vocabulary, self._special_tokens)
        batch = token_batch(list(token_ids), self._device, packed=self._packed)
        logprobs, _ = self._score(self._engine, batch, temperature=1.0)
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
