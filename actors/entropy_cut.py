"""Which tokens of an optimizer batch stay in the policy term for their entropy: all ranks must agree on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from funicular.actors.losses.entropy import entropy_threshold_of


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyCut:
    """Of one optimizer batch."""

    threshold: float | None
    """Nats; tokens from here on stay. None: all do."""
    tokens: int
    """How many do, on all ranks; what the entropy bonus is a mean over."""

    def keeps(self, entropies: torch.Tensor) -> torch.Tensor | None:
        """(N,) bool; None: all."""
        return None if self.threshold is None else entropies >= self.threshold


def agree_on_cut(entropies: Sequence[torch.Tensor], quantile: float, device: torch.device) -> EntropyCut:
    """Gather the entropies of all ranks; a collective.

    Args:
        entropies: this rank's, of an optimizer batch; may be none at all.
        quantile: the part of all tokens that stays.
    """
    own = torch.cat(list(entropies)) if entropies else torch.zeros(0, device=device)
    world = torch.distributed.get_world_size()
    counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world)]
    torch.distributed.all_gather(counts, torch.tensor([own.numel()], device=device))
    longest = max(int(count) for count in counts)
    padded = torch.zeros(longest, dtype=own.dtype, device=device)
    padded[: own.numel()] = own
    gathered = [torch.zeros_like(padded) for _ in range(world)]
    torch.distributed.all_gather(gathered, padded)
    everyone = torch.cat([of_rank[: int(count)] for of_rank, count in zip(gathered, counts, strict=True)])
    threshold = entropy_threshold_of(everyone, quantile)
    return EntropyCut(threshold=threshold, tokens=int((everyone >= threshold).sum()))
