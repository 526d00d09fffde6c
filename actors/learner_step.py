"""One training step on one learner rank: from fetched payloads and a plan to updated weights.

Forward passes before the first update, if old log-probabilities, entropies or a KL term in the reward need them -> per
optimizer batch: micro-batches forward and backward, agree that all values are finite, optimizer step.
Every rank makes the same collectives in the same order, whatever rows it has (packing.py).
"""

from __future__ import annotations

import itertools
import resource
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from funicular.actors import deepspeed_engine
from funicular.actors.collate import Batch, collate
from funicular.actors.config import AlgorithmConfig
from funicular.actors.distillation_config import teacher_scores_samples
from funicular.actors.entropy_cut import EntropyCut, agree_on_cut
from funicular.actors.errors import RunStopped
from funicular.actors.losses.kl import kl_to_go
from funicular.actors.losses.presets import kl_in_reward, loss_settings, preset_of
from funicular.actors.losses.token_losses import LossInputs, token_losses
from funicular.actors.packing import MicroBatch
from funicular.actors.policy import PolicyModel, compare_batch, score_batch
from funicular.actors.rank_distillation import RankDistillation
from funicular.actors.reference import Reference
from funicular.actors.row_scores import RowScores
from funicular.actors.step_plan import RankPlan
from funicular.actors.step_sums import StepSums
from funicular.actors.types import GroupPayload, KlScore, TeacherPayload


class LearnerStep:
    """Made for each step, with what this rank fetched for it.

    Args:
        engine: DeepSpeed's, of the policy.
        reference: None: no KL term.
        entropy_coef: weight of the entropy bonus in this step.
        ranks: over which DeepSpeed averages gradients.
        packed: rows stand one after the other, without padding.
        counts: False: another rank computes the same rows, and stands for this one where tokens of all are counted.
    """

    def __init__(
        self,
        engine: Any,
        algorithm: AlgorithmConfig,
        payloads: Mapping[str, GroupPayload],
        teacher_payloads: Mapping[str, TeacherPayload],
        *,
        distillation: RankDistillation,
        reference: Reference | None,
        entropy_coef: float,
        temperature: float,
        device: torch.device,
        ranks: int,
        packed: bool,
        counts: bool = True,
    ) -> None:
        self._engine = engine
        self._algorithm = algorithm
        self._settings = loss_settings(algorithm)
        self._bypass = preset_of(algorithm).old_logprobs == "generator"
        self._payloads = payloads
        self._distillation = distillation
        self._teacher_payloads = teacher_payloads if teacher_scores_samples(distillation.config) else None
        self._reference = reference
        self._entropy_coef = entropy_coef
        self._temperature = temperature
        self._device = device
        self._ranks = ranks
        self._packed = packed
        self._counts = counts
        self._before = RowScores()
        # Else its gradient is 0, and the output head's backward pass would compute so.
        self._has_policy_term = distillation.needs_policy_term or reference is not None

    @torch.no_grad()
    def score(self, plan: RankPlan) -> dict[tuple[str, int], KlScore]:
        """KL to the reference policy of each of this rank's completions, before any update; all ranks together.

        What was computed stays for the step that follows.
        """
        for micro in itertools.chain.from_iterable(plan.optimizer_batches):
            batch = self._collate(micro)
            old, entropies = self._score(self._engine, batch)
            self._before.put(batch, old=old, entropies=entropies, reference=self._reference_logprobs(batch))
        self._before.complete = True
        return self._before.kl()

    def run(self, plan: RankPlan) -> dict[str, float]:
        """Train as planned; all ranks at the same time. Returns metrics, reduced over ranks.

        Raises:
            RunStopped: a log-probability, loss or gradient is not finite.
        """
        sums = StepSums(self._settings, self._device, distilled=self._distillation.active)
        learning_rate = self._engine.get_lr()[0]
        self._score_before_updates(plan, sums)
        norms = []
        passes = list(enumerate(plan.optimizer_batches)) * self._algorithm.num_iterations
        for index, micro_batches in passes:
            if not micro_batches:  # on all ranks: nothing to learn
                continue
            learning_rate = self._engine.get_lr()[0]
            norms.append(self._optimizer_batch(micro_batches, self._cut(micro_batches, plan, index), sums))
        metrics = sums.metrics(optimizer_batches=len(passes), peak_memory_bytes=_peak_memory())
        metrics |= {"policy/optimizer_steps": float(len(norms)), "policy/learning_rate": float(learning_rate)}
        if norms:
            metrics["policy/grad_norm"] = sum(norms) / len(norms)
        return metrics

    def _collate(self, micro: MicroBatch) -> Batch:
        return collate(
            micro, self._payloads, self._device, packed=self._packed, teacher_payloads=self._teacher_payloads
        )

    def _score(self, model: PolicyModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return score_batch(model, batch, self._temperature)

    @torch.no_grad()
    def _score_before_updates(self, plan: RankPlan, sums: StepSums) -> None:
        """Keep what the policy says before the first update, of all that needs it and was not scored yet.

        That is everything where entropies decide what is trained. Else the optimizer batches after the first update:
        the one that is updated first needs nothing, because its own forward pass gives the same numbers. With several
        passes over the batch, it keeps them.
        """
        wanted = [index for index, micro_batches in enumerate(plan.optimizer_batches) if micro_batches]
        if self._algorithm.top_entropy_quantile == 1:
            known = self._bypass or kl_in_reward(self._algorithm) or not self._has_policy_term
            wanted = [] if known else wanted[1:]
        for micro in (micro for index in wanted for micro in plan.optimizer_batches[index]):
            batch = self._collate(micro)
            old, entropies = self._score(self._engine, batch)
            self._before.put(batch, old=old, entropies=entropies)
            sums.check_finite(old)

    def _cut(self, micro_batches: tuple[MicroBatch, ...], plan: RankPlan, index: int) -> EntropyCut:
        """Which tokens of an optimizer batch the policy term and the entropy bonus are over; a collective."""
        quantile = self._algorithm.top_entropy_quantile
        if quantile == 1:
            return EntropyCut(threshold=None, tokens=plan.normalisers[index].tokens)
        kept = [self._before.entropies(self._collate(micro)) for micro in micro_batches if self._counts]
        return agree_on_cut([entropies for entropies in kept if entropies is not None], quantile, self._device)

    @torch.no_grad()
    def _reference_logprobs(self, batch: Batch) -> torch.Tensor | None:
        if self._reference is None:
            return None
        if kl_in_reward(self._algorithm) and self._before.complete:  # on all ranks, those without rows too
            return self._before.reference(batch)
        with self._reference.scoring() as model:
            return self._score(model, batch)[0]

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
        reference = self._reference_logprobs(batch)
        with self._distillation.target(batch) as target:
            logprobs, entropy, *divergences = compare_batch(self._engine, batch, self._temperature, target)
            self._backward(batch, cut, sums, reference, logprobs, entropy, divergences)

    def _backward(
        self,
        batch: Batch,
        cut: EntropyCut,
        sums: StepSums,
        reference: torch.Tensor | None,
        logprobs: torch.Tensor,
        entropy: torch.Tensor,
        divergences: list[torch.Tensor],
    ) -> None:
        """From what the policy says of a micro-batch to its gradient."""
        settings = self._settings
        before = self._before.old(batch)
        learner = logprobs.detach() if before is None else before
        if before is None and not self._bypass and self._algorithm.num_iterations > 1:  # the first optimizer batch
            self._before.put(batch, old=logprobs, entropies=entropy)
        advantages = batch.advantages
        if batch.kl_weight and reference is not None:
            advantages = advantages + (batch.kl_weight * kl_to_go(learner - reference, batch.segments)).float()
        old = learner
        if self._bypass and batch.generator_logprobs is not None:
            old = batch.generator_logprobs
        sampled = self._distillation.sampled(batch, old)
        if sampled is not None:
            advantages = advantages - sampled.losses
        entropies_before = self._before.entropies(batch)
        in_policy_term = cut.keeps(entropy.detach() if entropies_before is None else entropies_before)
        terms = token_losses(
            LossInputs(
                logprobs=logprobs if self._has_policy_term else logprobs.detach(),
                old_logprobs=old,
                advantages=advantages,
                segments=batch.segments,
                generator_logprobs=batch.generator_logprobs,
                reference_logprobs=reference,
                in_policy_term=in_policy_term,
            ),
            settings,
        )
        losses = terms.losses
        compared = self._distillation.compared(logprobs, divergences)
        if compared is not None:
            losses = losses + compared.losses
        loss = (losses * batch.token_weights).sum()
        if self._entropy_coef > 0:
            counted = entropy if in_policy_term is None else entropy[in_policy_term]
            # Of an empty pass too: under ZeRO-3 the backward pass of each output of the head is a collective.
            coef = 0.0 if batch.is_empty else self._entropy_coef
            loss = loss - coef * counted.sum() / cut.tokens
        deepspeed_engine.backward(self._engine, loss, self._ranks)
        # The generator's too: completions where one is missing are void, and never come here (law 4).
        sums.check_finite(logprobs, reference, loss, batch.generator_logprobs)
        if batch.is_empty or not self._counts:
            return
        sums.add(
            batch,
            terms,
            loss=loss.detach(),
            learner_logprobs=learner,
            advantages=advantages,
            entropy=entropy.detach(),
            in_policy_term=in_policy_term,
            distilled=sampled or compared,
        )


def _peak_memory() -> float:
    """Largest resident memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
