"""A training batch that has everything, its cut, and the plain model that it is compared with."""

from __future__ import annotations

from typing import Any

import torch

from funicular.actors.config import AlgorithmConfig
from funicular.actors.packing import SharePrompts
from funicular.actors.step_plan import StepPlan, plan_step
from funicular.actors.types import GroupPayload, ScoredGroup
from tests.builders import make_group, make_payload

LIMIT = 16
"""max_completion_tokens."""


def batch(seed: int = 0) -> tuple[list[ScoredGroup], dict[str, GroupPayload]]:
    """Five groups: void, truncated and empty completions, one group without variance, prompts of one token and more."""
    shapes: list[tuple[list[float | None], list[int], int]] = [
        ([0.0, 1.0, 0.0, 1.0], [3, 9, 16, 7], 5),
        ([1.0, None, 0.0, 0.5], [12, 2, 4, 4], 11),
        ([1.0, 1.0, 1.0, 1.0], [6, 6, 6, 1], 3),
        ([2.0, 0.0, 0.0, 0.0], [1, 16, 5, 0], 8),
        ([0.0, 0.0, 1.0, 3.0], [10, 3, 3, 8], 1),
    ]
    groups = [
        make_group(f"g{i}", rewards_G=r, lengths_G=n, prompt_tokens=p, truncated_G=[length == LIMIT for length in n])
        for i, (r, n, p) in enumerate(shapes)
    ]
    payloads = {
        group.group_id: make_payload(
            group.group_id,
            lengths_G=group.generation.lengths_G,
            prompt_tokens=group.generation.prompt_tokens,
            seed=seed,
        )
        for group in groups
    }
    return groups, payloads


def short_rows() -> tuple[list[ScoredGroup], dict[str, GroupPayload]]:
    """One group with rows of two and three tokens."""
    group = make_group("short", rewards_G=[1.0, 0.0], lengths_G=[1, 2], prompt_tokens=1)
    return [group], {"short": make_payload("short", lengths_G=[1, 2], prompt_tokens=1)}


def plan(
    groups: list[ScoredGroup],
    algorithm: AlgorithmConfig,
    world: int,
    tokens: int = 60,
    *,
    packed: bool = True,
    share_prompts: SharePrompts = "off",
) -> StepPlan:
    return plan_step(groups, algorithm, world, tokens, LIMIT, packed=packed, share_prompts=share_prompts)


def load_plain(folder: str, weights: dict[str, torch.Tensor] | None = None) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if weights is not None:
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert set(missing) <= {"lm_head.weight"}
        assert not unexpected
    return model


def distance(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Norm of all differences together."""
    return float(sum((got[name].double() - x.double()).square().sum() for name, x in expected.items()) ** 0.5)
