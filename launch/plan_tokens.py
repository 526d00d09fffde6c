"""Tokens that a learner computes for a group, cut into passes as the learner cuts them (`actors/packing.py`)."""

from __future__ import annotations

from dataclasses import dataclass

from funicular.actors.packing import PlannedRow, Tree, cut_micro_batches, grow_trees, tokens_of
from funicular.launch.config import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTokens:
    """Of one group whose completions all give a gradient."""

    shared: int
    """With the prompt shared by those that are in one pass, where `learner.share_prefix` does."""
    unshared: int
    """With a prompt for each completion."""


def tokens_of_a_group(config: Config, prompt: int, completion: int) -> GroupTokens:
    """Tokens of a group of completions of one length."""
    return GroupTokens(
        shared=sum(map(tokens_of, _trees(config, prompt, completion))),
        unshared=config.algorithm.group_size * (prompt + completion),
    )


def trained_tokens_of_a_pass(config: Config) -> int:
    """Tokens of completions in the fullest pass over a batch of the longest prompts and completions."""
    generator = config.generator
    trees = _trees(config, generator.max_prompt_tokens, generator.max_completion_tokens)
    enough = 1 + _room(config) // min(map(tokens_of, trees))  # groups that fill a pass
    batch = trees * min(config.algorithm.groups_per_step, enough)
    passes = cut_micro_batches(batch, _room(config), packed=config.learner.packing)
    return max(sum(row.completion_tokens for tree in one for row in tree) for one in passes)


def _trees(config: Config, prompt: int, completion: int) -> list[Tree]:
    rows = [
        PlannedRow(
            group_id="",
            completion=index,
            prompt_tokens=prompt,
            completion_tokens=completion,
            advantage=0.0,
            token_weight=0.0,
        )
        for index in range(config.algorithm.group_size)
    ]
    return grow_trees(rows, _room(config), config.learner.share_prefix if config.learner.packing else "off")


def _room(config: Config) -> int:
    """Tokens of a pass, of all ranks that share it."""
    return config.learner.micro_batch_tokens * config.learner.sequence_parallel
