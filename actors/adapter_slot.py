"""Inside an engine worker: the place of the one LoRA adapter that it serves, and what stands there.

vLLM keeps an adapter's factors beside each layer, those of fused layers as a tuple, those of tensor-parallel layers cut
over workers. It empties the place whenever base weights were updated, so an adapter is put in last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from funicular.actors.engine_tensors import parts_in_use
from funicular.actors.fingerprint import fingerprint
from funicular.actors.served_adapter import NUMBER

_BASE = ".base_layer"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Factor:
    """One factor of the adapter, as far as this worker holds it."""

    shape: tuple[int, int]
    """Of the whole factor, over all workers."""
    module: str
    layer: Any
    stack: str
    """Attribute of the layer, a tuple with one (adapters, 1, rows, columns) tensor for each tensor that it fuses."""
    index: int
    shard: int
    shards: int


class AdapterSlot:
    """Args:
    manager: the model runner's `lora_manager`.
    rank, targets: as in `ServedAdapter`.
    """

    def __init__(self, manager: Any, model: Any, rank: int, targets: Sequence[str]) -> None:
        self._manager = manager
        self._rank = rank
        self._factors = _factors(model, rank, set(targets))
        self.begin()

    def begin(self) -> None:
        """Forget what was taken: a whole adapter comes."""
        self._received: dict[str, torch.Tensor] = {}

    def expected(self, dtype: torch.dtype) -> list[tuple[str, list[int], str]]:
        """(name, whole shape, dtype) of every tensor of the adapter."""
        kind = str(dtype).removeprefix("torch.")
        return [(name, list(factor.shape), kind) for name, factor in self._factors.items()]

    def take(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Keep copies of the adapter's tensors until `activate`; returns the others."""
        self._received |= {name: tensor.clone() for name, tensor in tensors.items() if name in self._factors}
        return {name: tensor for name, tensor in tensors.items() if name not in self._factors}

    @torch.no_grad()
    def activate(self) -> None:
        """Have the layers multiply by what was taken."""
        from vllm.lora.lora_model import LoRAModel
        from vllm.lora.peft_helper import PEFTHelper

        form = PEFTHelper(r=self._rank, lora_alpha=self._rank, target_modules=[])  # B comes scaled
        adapter = LoRAModel.from_lora_tensors(NUMBER, self._received, form, device="cpu")
        slots = self._manager._adapter_manager
        slots.remove_adapter(NUMBER)
        slots.add_adapter(adapter)
        slots.activate_adapter(NUMBER)
        self.begin()

    @torch.no_grad()
    def observe(self) -> list[tuple[str, str, str, int, int, int]]:
        """Fingerprint every element of the factors in use, and of the room around them, which must be zero."""
        place = self._manager._adapter_manager.lora_index_to_id.index(NUMBER)
        return [
            (
                name,
                factor.module,
                "elements",
                factor.shard,
                factor.shards,
                fingerprint(getattr(factor.layer, factor.stack)[factor.index][place]),
            )
            for name, factor in self._factors.items()
        ]


def _factors(model: Any, rank: int, targets: set[str]) -> dict[str, _Factor]:
    """By name. Layers that are cut by rows have their B cut, layers that are cut by columns their A."""
    from vllm.model_executor.layers.linear import RowParallelLinear

    factors = {}
    fused: Counter[str] = Counter()
    for module_name, module, part in parts_in_use(model):
        if part.parameter != "weight" or not module_name.endswith(_BASE):
            continue
        index = fused[module_name]
        fused[module_name] += 1
        stem = part.tensor.removesuffix(".weight")
        if stem.rpartition(".")[2] not in targets:
            continue
        cut, whole = (part.shard, part.shards), (0, 1)
        of_a, of_b = (cut, whole) if isinstance(module, RowParallelLinear) else (whole, cut)
        layer = model.get_submodule(module_name.removesuffix(_BASE))
        for factor, shape, stack, (shard, shards) in (
            ("lora_A", (rank, part.shape[1]), "lora_a_stacked", of_a),
            ("lora_B", (part.shape[0], rank), "lora_b_stacked", of_b),
        ):
            factors[f"{stem}.{factor}.weight"] = _Factor(
                shape=shape, module=module_name, layer=layer, stack=stack, index=index, shard=shard, shards=shards
            )
    return factors
