"""Which completion each of N trained tokens belongs to: sums and means over completions without padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """N tokens of R completions; a completion may have none."""

    ids: torch.Tensor
    """(N,) int64, of each token its completion, 0 to R - 1."""
    lengths: torch.Tensor
    """(R,) int64."""

    @classmethod
    def of_lengths(cls, lengths: torch.Tensor) -> Segments:
        """Completions one after the other, (R,) tokens each."""
        ids = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        return cls(ids=ids, lengths=lengths)

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """(N,) -> (R,) sum over each completion; 0 where it has no token."""
        return torch.zeros(len(self.lengths), dtype=x.dtype, device=x.device).index_add(0, self.ids, x)

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        """(N,) -> (R,) mean over each completion; 0 where it has no token."""
        return self.sum(x) / self.lengths.clamp(min=1)

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """(R,) -> (N,) the completion's value at each of its tokens."""
        return x[self.ids]
