"""What DeepSpeed does to gradients, without DeepSpeed: the arithmetic that `deepspeed_engine.backward` must undo."""

from __future__ import annotations

from typing import Any

import torch


class FakeAveragingEngine:
    """One rank's engine. Measured of DeepSpeed 0.19.8 at ZeRO 0 to 3: `backward` divides by the accumulation steps
    unless told not to, and gradients are averaged over ranks. `tests/integration/test_learner.py` has the real one."""

    def __init__(self, ranks: int, accumulation_steps: int) -> None:
        self._ranks = ranks
        self._accumulation_steps = accumulation_steps

    def backward(self, loss: torch.Tensor, *, scale_wrt_gas: bool = True) -> None:
        if scale_wrt_gas:
            loss = loss / self._accumulation_steps
        (loss / self._ranks).backward()


class UnigramEngine(FakeAveragingEngine):
    """An engine around the smallest policy: each token id has a log-probability and an entropy, wherever it stands.

    Args:
        logprobs: (V,)
        entropies: (V,)
    """

    def __init__(
        self, logprobs: torch.Tensor, entropies: torch.Tensor, *, ranks: int = 1, accumulation_steps: int = 1
    ) -> None:
        super().__init__(ranks, accumulation_steps)
        self.logprobs = logprobs
        self.entropies = entropies

    def __call__(
        self,
        *arguments: Any,
        temperature: float,
        layout: Any = None,
        target: None = None,
        images: None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        labels = arguments[-1]
        return self.logprobs[labels], self.entropies[labels]
