"""The one LoRA adapter that an engine serves with `weight_sync.lora: adapter`. Loads neither torch nor vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from funicular.actors.config import LearnerConfig, WeightSyncConfig

NAME, NUMBER = "policy", 1
"""What vLLM knows the adapter by. The same at every version: running requests go on with the new one."""
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Layers that may have adapters in an engine; all of a decoder layer's linear ones."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Room for ranks that vLLM offers (0.32.0)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedAdapter:
    """Which layers have adapters, and how large."""

    rank: int
    targets: tuple[str, ...]
    """Last parts of the layers' names in the checkpoint."""

    def engine_arguments(self) -> dict[str, Any]:
        """Of vLLM's AsyncEngineArgs."""
        return {
            "enable_lora": True,
            "max_loras": 1,
            "max_lora_rank": min(room for room in RANKS if room >= self.rank),
            "lora_target_modules": list(self.targets),
        }

    def request(self) -> Any:
        """What each request to the engine carries. Nothing is at its path: `adapter_slot.py` puts the adapter in."""
        from vllm.lora.request import LoRARequest

        return LoRARequest(NAME, NUMBER, "funicular-weight-sync")


def served_adapter(learner: LearnerConfig, sync: WeightSyncConfig) -> ServedAdapter | None:
    """The adapter that generators of a recipe serve; None: they serve merged weights."""
    if sync.lora == "merged":
        return None
    return ServedAdapter(rank=learner.lora_rank, targets=adapted_layers(learner.lora_targets))


def adapted_layers(targets: str) -> tuple[str, ...]:
    """Of `learner.lora_targets`."""
    return TARGETS if targets == "all-linear" else tuple(target.strip() for target in targets.split(","))
