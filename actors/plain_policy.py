"""The process of a certificate that has the plain model: it samples, and computes the gradient to compare with.

A plain class, and the Ray actor made of it. No DeepSpeed in here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from funicular.actors import lora
from funicular.actors.completions import describe_group, pack_group
from funicular.actors.config import LearnerConfig
from funicular.actors.drift import drift
from funicular.actors.gradient_errors import GradientComparison, GradientErrors
from funicular.actors.in_float64 import in_float64
from funicular.actors.losses.presets import needs_reference
from funicular.actors.plain_gradient import Logprobs, OptimizerBatch, add_gradient, row_logprobs
from funicular.actors.plain_sampler import sample, stop_ids_of
from funicular.actors.policy import load_causal_lm
from funicular.actors.prompts import Prompts, load_tokenizer
from funicular.actors.tensor_file import TensorFile, save_tensors
from funicular.actors.types import GenerationRecord, GroupPayload
from funicular.rewards.types import Task

_INITIAL_VERSION = 0


class PlainPolicy:
    """One model of transformers, in one process.

    Args:
        model_folder: the initial policy.
        seed: of sampling, of adapters and of the drift.
    """

    def __init__(self, model_folder: str, *, chat_template: str, temperature: float, seed: int) -> None:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._model_folder = Path(model_folder)
        self._prompts = Prompts(load_tokenizer(model_folder), chat_template)
        self._temperature = temperature
        self._seed = seed

    def render(self, tasks: Sequence[Task]) -> list[list[int]]:
        """Token ids of each task's prompt.

        Raises:
            ValueError: the chat template refuses a task.
        """
        return [self._prompts.render(task) for task in tasks]

    def sample(
        self, prompts: Sequence[tuple[str, Sequence[int]]], limits_PG: Sequence[Sequence[int]]
    ) -> list[tuple[GenerationRecord, GroupPayload]]:
        """Complete each prompt, in float32, with the initial weights.

        Args:
            prompts: group_id and token ids of each.
            limits_PG: most tokens of each completion.
        """
        model = load_causal_lm(self._model_folder, torch.float32)
        generator = torch.Generator().manual_seed(self._seed)
        versions = {"initial": _INITIAL_VERSION}
        found = []
        for (group_id, prompt_ids), limits_G in zip(prompts, limits_PG, strict=True):
            began = time.monotonic()
            completions = sample(
                model,
                prompt_ids,
                limits_G,
                temperature=self._temperature,
                stop_ids=stop_ids_of(model),
                generator=generator,
            )
            texts = tuple(self._prompts.decode(completion.token_ids) for completion in completions)
            payload = pack_group(group_id, prompt_ids, completions, versions, texts)
            found.append((describe_group("plain", payload, completions, time.monotonic() - began), payload))
        return found

    def gradient(self, batch: OptimizerBatch, learner: LearnerConfig, file: str) -> float:
        """Write the gradient of a batch, in float64, with every trained parameter by name. Returns its norm."""
        model = self._with_gradient(batch, learner, torch.float64)
        gradients = {name: _gradient(parameter) for name, parameter in _trained(model)}
        save_tensors(Path(file), gradients)
        return float(torch.stack([gradient.norm() for gradient in gradients.values()]).norm())

    def float32_errors(self, batch: OptimizerBatch, learner: LearnerConfig, file: str) -> GradientErrors:
        """Errors of the same computation in float32: what that type alone costs."""
        comparison = GradientComparison(TensorFile(Path(file)))
        for name, parameter in _trained(self._with_gradient(batch, learner, torch.float32)):
            comparison.add(name, parameter.grad)
        return comparison.result()

    def _with_gradient(self, batch: OptimizerBatch, learner: LearnerConfig, dtype: torch.dtype) -> Any:
        """The policy, drifted, with the batch's gradient in its parameters."""
        model = load_causal_lm(self._model_folder, torch.float32)
        model.set_attn_implementation("eager")  # the model's own code
        with in_float64() if dtype == torch.float64 else nullcontext():
            reference: Logprobs | None = None
            if needs_reference(batch.algorithm):
                reference = row_logprobs(model.to(dtype), batch)
            model = model.float()  # exact: it holds float32 values
        if learner.lora_rank:
            lora.add_adapters(model, replace(learner, zero_stage=0), self._seed, with_reference=False)
        drift(model, self._seed)
        with in_float64() if dtype == torch.float64 else nullcontext():
            add_gradient(model.to(dtype), batch, reference)
        return model


def plain_policy_actor() -> Any:
    """The class as a Ray actor."""
    import ray

    return ray.remote(PlainPolicy)


def _trained(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(parameter.detach()) if parameter.grad is None else parameter.grad
