"""Adapters inside the policy (LoRA, DoRA): put in, switched for the reference policy, merged for publishing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from funicular.actors import vision
from funicular.actors.config import LearnerConfig

POLICY = "default"
"""peft's name of the adapters that are trained."""
REFERENCE = "reference"
"""Of a frozen second set, for a reference policy that is refreshed."""
_BASE = ".base_layer"
_PARTS = ("lora_A", "lora_B", "lora_magnitude_vector")


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """What is learnt about one matrix W: W + scale B A; with a magnitude m, each row of that scaled to length m."""

    a: torch.nn.Parameter
    b: torch.nn.Parameter
    magnitude: torch.nn.Parameter | None
    scale: float

    @property
    def parts(self) -> tuple[torch.nn.Parameter, ...]:
        """What must be gathered before `merge`, besides the base."""
        return (self.a, self.b) if self.magnitude is None else (self.a, self.b, self.magnitude)

    def merge(self, base: torch.Tensor) -> torch.Tensor:
        """The merged weight, computed in float32 (DoRA: arXiv 2402.09353, eq. 5)."""
        merged = base.float() + self.scale * (self.b.float() @ self.a.float())
        if self.magnitude is None:
            return merged
        return merged * (self.magnitude.float() / torch.linalg.norm(merged, dim=1))[:, None]


def add_adapters(model: Any, config: LearnerConfig, seed: int, *, with_reference: bool) -> Any:
    """Put adapters into the model in place and freeze the rest. Returns the peft LoraConfig, for export.

    Args:
        with_reference: also the frozen set that `REFERENCE` names, equal to the first.

    Raises:
        ValueError: a target is not a plain linear layer, or no layer matches.
    """
    from peft import LoraConfig, TaskType, inject_adapter_in_model

    targets: Any = config.lora_targets
    if targets != "all-linear":
        targets = [name.strip() for name in targets.split(",")]
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=targets,
        exclude_modules=vision.ADAPTER_FREE if config.freeze_vision and vision.reads_images(model) else None,
        lora_dropout=0.0,
        task_type=TaskType.CAUSAL_LM,
        use_dora=config.adapter == "dora",
        use_rslora=config.lora_rslora,
    )
    for name in (POLICY, REFERENCE) if with_reference else (POLICY,):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            inject_adapter_in_model(lora, model, name)
    for name, layer in _adapted(model):
        if not isinstance(layer.get_base_layer(), torch.nn.Linear):  # GPT-2's Conv1D has its weight transposed
            kind = type(layer.get_base_layer()).__name__
            raise ValueError(f"learner.lora_targets: {name} is a {kind}; only linear layers can be merged")
        layer.set_adapter(POLICY)  # trainable, and the other set frozen
    if config.zero_stage == 3:
        _gather_at_once(model)
    return lora


def switch_adapters(model: Any, name: str | None) -> None:
    """Have the model compute with the set of this name; None: without adapters, which is the initial policy."""
    for _, layer in _adapted(model):
        # Not peft's `set_adapter` or `enable_adapters`: they change requires_grad, which DeepSpeed has taken note of.
        layer._active_adapter = [] if name is None else [name]


def is_adapter_parameter(name: str) -> bool:
    """Whether a parameter's name is that of a part of an adapter, of either set."""
    return any(f".{part}." in name for part in _PARTS)


def hugging_face_name(name: str) -> str:
    """The name without what adapters insert into it."""
    return name.replace(_BASE, "")


def adapters_by_weight(model: Any) -> dict[str, Adapter]:
    """Adapter of each adapted weight, by the weight's Hugging Face name."""
    return {
        f"{name}.weight": Adapter(
            a=layer.lora_A[POLICY].weight,
            b=layer.lora_B[POLICY].weight,
            magnitude=layer.lora_magnitude_vector[POLICY].weight if POLICY in layer.lora_magnitude_vector else None,
            scale=layer.scaling[POLICY],
        )
        for name, layer in _adapted(model)
    }


def trained_parts(model: Any) -> dict[str, torch.nn.Parameter]:
    """Every part of the trained adapters, by its name in an adapter file of peft."""
    return {
        f"base_model.model.{name.replace(f'.{POLICY}.', '.').replace('vector.weight', 'vector')}": parameter
        for name, parameter in model.named_parameters()
        if is_adapter_parameter(name) and f".{POLICY}." in name
    }


def adapter_pairs(model: Any) -> dict[str, tuple[torch.nn.Parameter, torch.nn.Parameter]]:
    """Each part of the trained adapters, and the one of the reference set that stands for it; by the former's name."""
    named = dict(model.named_parameters())
    return {
        name: (parameter, named[name.replace(f".{POLICY}.", f".{REFERENCE}.")])
        for name, parameter in named.items()
        if is_adapter_parameter(name) and f".{POLICY}." in name
    }


def _adapted(model: Any) -> list[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]


def _gather_at_once(model: Any) -> None:
    """Have ZeRO-3 gather an adapted layer whole: DoRA reads the base weight outside the base layer's forward pass.

    It also keeps the order of gathering the same for the policy and its reference, so that prefetching works.
    """
    from deepspeed.utils import set_z3_leaf_modules

    set_z3_leaf_modules(model, list({type(layer) for _, layer in _adapted(model)}))
    # DeepSpeed takes the gradients of such a layer when the one of its input is there. The first layer's input, the
    # frozen embedding's output, would have none, and its adapters' gradients would be taken before they exist.
    model.enable_input_require_grads()
