"""Rules between the keys of `weight_sync`, and between them and the rest of a recipe."""

from __future__ import annotations

from collections.abc import Iterator

from funicular.actors.placed_models import ROW_BY_ROW
from funicular.actors.served_adapter import RANKS, TARGETS, adapted_layers
from funicular.launch.config import Config
from funicular.launch.config_values import problem_at
from funicular.launch.model_config import model_config
from funicular.launch.problems import Problem


def sync_problems(config: Config) -> Iterator[Problem]:
    """What makes publishing impossible."""
    generator = config.generator
    if config.weight_sync.transport == "cuda_ipc":
        expected = (
            "expected auto, object_store, delta or broadcast: this one needs GPUs to be tried on, and is not built"
        )
        yield problem_at(
            config, "weight_sync.transport", expected, "object_store works on GPUs too, by way of the host"
        )
    longest = generator.max_prompt_tokens + generator.max_completion_tokens
    if config.weight_sync.canary_tokens > longest:
        expected = f"expected at most max_prompt_tokens + max_completion_tokens = {longest}, to fit an engine"
        related = ("generator.max_prompt_tokens", "generator.max_completion_tokens")
        yield problem_at(config, "weight_sync.canary_tokens", expected, "", *related)
    if config.weight_sync.lora == "adapter":
        yield from _adapter(config)


def _adapter(config: Config) -> Iterator[Problem]:
    """What an engine cannot serve as base weights and an adapter beside them."""
    learner, key, merged = config.learner, "weight_sync.lora", "Set weight_sync.lora=merged"
    if not learner.lora_rank:
        expected = "learner.lora_rank=0 trains all weights: there is no adapter to send"
        yield problem_at(config, key, expected, merged, "learner.lora_rank")
        return
    if learner.adapter != "lora":
        expected = f"vLLM cannot serve {learner.adapter}: its magnitudes scale rows of the merged weight"
        yield problem_at(config, key, expected, merged, "learner.adapter")
    if learner.lora_rank > max(RANKS):
        expected = f"vLLM serves adapters of rank {max(RANKS)} at most"
        yield problem_at(config, key, expected, merged, "learner.lora_rank")
    if others := sorted(set(adapted_layers(learner.lora_targets)) - set(TARGETS)):
        expected = f"no engine takes an adapter on {', '.join(others)}; it does on {', '.join(TARGETS)}"
        yield problem_at(config, key, expected, merged, "learner.lora_targets")
    classes = model_config(config.model.path).get("architectures") or []
    if others := sorted(set(classes) - ROW_BY_ROW):
        expected = f"{', '.join(others)} takes no adapter by itself; {', '.join(sorted(ROW_BY_ROW))} do"
        yield problem_at(config, key, expected, merged, "model.path")
    if config.weight_sync.transport == "delta":
        expected = "every value of an adapter changes at every step: expected auto, object_store or broadcast"
        yield problem_at(config, "weight_sync.transport", expected, "Set weight_sync.transport=auto", key)
