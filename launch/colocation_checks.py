"""What `cluster.colocate` needs of the rest of a recipe."""

from __future__ import annotations

from collections.abc import Iterator

from funicular.launch.config import Config
from funicular.launch.config_values import problem_at
from funicular.launch.problems import Problem

_OFF = "or set cluster.colocate=false"


def colocation_problems(config: Config) -> Iterator[Problem]:
    """Why generators cannot stand on the learner's GPUs and take turns with it."""
    if not config.cluster.colocate:
        return
    key, generator, ranks = "cluster.colocate", config.generator, config.learner.ranks
    if config.max_staleness:
        expected = "learner and generators take turns, so nothing is generated while the learner trains"
        yield problem_at(config, "max_staleness", f"{expected}: expected 0", f"Set max_staleness=0, {_OFF}", key)
    workers = generator.count * generator.tensor_parallel_size
    if workers != ranks:
        expected = (
            f"each rank shares its GPU with one engine worker: expected generator.count x "
            f"generator.tensor_parallel_size = {workers}"
        )
        related = (key, "generator.count", "generator.tensor_parallel_size")
        yield problem_at(config, "learner.ranks", expected, f"Set learner.ranks={workers}, {_OFF}", *related)
    if config.data.completion_column is not None and not config.evaluation.tasks:
        expected = "completions are given and nothing is evaluated, so no generator is started: expected false"
        yield problem_at(config, key, expected, "Leave it out", "data.completion_column", "evaluation.tasks")
    if config.weight_sync.lora == "adapter":
        expected = "an engine that gives up its memory loses the place of its adapter: expected merged"
        yield problem_at(config, "weight_sync.lora", expected, f"Set weight_sync.lora=merged, {_OFF}", key)
    if config.weight_sync.transport == "broadcast":
        expected = "while engines load, learner ranks have left the GPU that they would send from: expected auto"
        yield problem_at(config, "weight_sync.transport", expected, f"Set weight_sync.transport=auto, {_OFF}", key)
    draft = generator.engine_options.get("speculative_config")
    if isinstance(draft, dict) and draft.get("method") != "ngram":
        expected = (
            "an engine that gives up its memory loses its draft model, and nothing sends it again: expected ngram"
        )
        yield problem_at(config, "generator.engine_options", expected, f"Leave speculative_config out, {_OFF}", key)
