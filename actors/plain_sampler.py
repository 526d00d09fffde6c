"""Completions by the transformers model itself, for checks: no engine, no weight versions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from funicular.actors.completions import Completion


@torch.no_grad()
def sample(
    model: Any,
    prompt_ids: Sequence[int],
    limits_G: Sequence[int],
    *,
    temperature: float,
    stop_ids: Collection[int],
    generator: torch.Generator,
) -> list[Completion]:
    """Sample G completions of one prompt from softmax(logits / temperature).

    Args:
        limits_G: most tokens of each, at least 1. Only one that reaches the largest of them is `truncated`.
        stop_ids: a completion ends with the first of these, which stays in it.
    """
    completions = [Completion() for _ in limits_G]
    inputs = torch.tensor([list(prompt_ids)] * len(completions))
    cache = None
    for _ in range(max(limits_G)):
        out = model(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        logprobs = torch.log_softmax(out.logits[:, -1].float() / temperature, -1)
        inputs = torch.multinomial(logprobs.exp(), 1, generator=generator)
        chosen = logprobs.gather(1, inputs)
        for completion, limit, token, logprob in zip(
            completions, limits_G, inputs[:, 0].tolist(), chosen[:, 0].tolist(), strict=True
        ):
            ended = completion.token_ids and completion.token_ids[-1] in stop_ids
            if ended or len(completion.token_ids) == limit:
                continue
            completion.token_ids.append(token)
            completion.logprobs.append(logprob)
    for completion in completions:
        cut = completion.token_ids[-1] not in stop_ids
        completion.truncated = cut and len(completion.token_ids) == max(limits_G)
        completion.spans = [("initial", len(completion.token_ids))]
    return completions


def stop_ids_of(model: Any) -> frozenset[int]:
    """Ids that end a completion, as the model's generation config, or else its config, says."""
    for config in (getattr(model, "generation_config", None), model.config):
        found = getattr(config, "eos_token_id", None)
        if found is not None:
            return frozenset([found] if isinstance(found, int) else found)
    return frozenset()
