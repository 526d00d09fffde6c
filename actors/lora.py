"""LoRA adapters inside the policy: put in, switched off for the reference policy, merged for publishing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from funicular.actors.config import LearnerConfig

_ADAPTER = "default"
_BASE = ".base_layer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """The two factors of one adapted matrix: merged weight = base + scale * B @ A."""

    a: torch.nn.Parameter
    b: torch.nn.Parameter
    scale: float

    def merge(self, base: torch.Tensor) -> torch.Tensor:
        """The merged weight, computed in float32. Under ZeRO-3 all three must be gathered."""
        return base.float() + self.scale * (self.b.float() @ self.a.float())


def add_adapters(model: Any, config: LearnerConfig, seed: int) -> Any:
    """Put adapters into the model in place and freeze the rest. Returns the peft LoraConfig, for export.

    Raises:
        ValueError: a target is not a plain linear layer, or no layer matches.
    """
    from peft import LoraConfig, TaskType, inject_adapter_in_model
    from peft.tuners.lora import Linear, LoraLayer

    targets: Any = config.lora_targets
    if targets != "all-linear":
        targets = [name.strip() for name in targets.split(",")]
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=targets,
        lora_dropout=0.0,
        task_type=TaskType.CAUSAL_LM,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(lora, model, _ADAPTER)
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and not isinstance(layer, Linear):
            raise ValueError(
                f"learner.lora_targets: {name} is a {type(layer).__name__}; only linear layers can be merged"
            )
    return lora


def switch_adapters(model: Any, *, on: bool) -> None:
    """Switch all adapters on or off. Off leaves the initial policy, which is the reference policy."""
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.set_scale(_ADAPTER, 1.0 if on else 0.0)


def is_adapter_parameter(name: str) -> bool:
    """Whether a parameter's name is that of a LoRA factor."""
    return ".lora_A." in name or ".lora_B." in name


def hugging_face_name(name: str) -> str:
    """The name without what adapters insert into it."""
    return name.replace(_BASE, "")


def adapters_by_weight(model: Any) -> dict[str, Adapter]:
    """Adapter of each adapted weight, by the weight's Hugging Face name."""
    from peft.tuners.lora import LoraLayer

    return {
        f"{name}.weight": Adapter(
            a=layer.lora_A[_ADAPTER].weight, b=layer.lora_B[_ADAPTER].weight, scale=layer.scaling[_ADAPTER]
        )
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }


def saved_name(name: str) -> str:
    """The name of a LoRA factor in an adapter file of peft."""
    return f"base_model.model.{name.replace(f'.{_ADAPTER}.', '.')}"
