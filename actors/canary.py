"""The canary's text, and what a policy in this process says of it (`weights.Canary`)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from funicular.actors.collate import token_batch
from funicular.actors.policy import score_batch
from funicular.actors.weights import Canary


def canary_tokens(count: int, vocabulary: int, special: Sequence[int]) -> tuple[int, ...]:
    """The canary's text: always the same for a model, without special tokens."""
    ordinary = sorted(set(range(vocabulary)) - set(special))
    return tuple(random.Random("canary").choices(ordinary, k=count))


@torch.no_grad()
def canary_of(
    model: Any, count: int, *, vocabulary: int, special: Sequence[int], device: torch.device, packed: bool
) -> Canary:
    """What a policy says of `count` tokens; under ZeRO-3 a collective.

    Args:
        model: a PolicyModel, or its DeepSpeed engine.
        special: ids that the text must not hold (`special_tokens`).
        packed: whether the policy runs over packed rows.
    """
    token_ids = canary_tokens(count, vocabulary, special)
    batch = token_batch(list(token_ids), device, packed=packed)
    logprobs, _ = score_batch(model, batch, temperature=1.0)
    return Canary(token_ids=token_ids, logprobs=tuple(logprobs.tolist()))


def special_tokens(folder: Path) -> list[int]:
    """Special ids of the folder's tokenizer, and rows of the embedding that no token has."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    vocabulary = AutoConfig.from_pretrained(str(folder)).get_text_config().vocab_size
    return [*tokenizer.all_special_ids, *range(len(tokenizer), vocabulary)]
