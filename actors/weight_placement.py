"""Inside an engine worker: puts tensors of the checkpoint straight into the parameters in use.

vLLM's own reload takes every layer off its memory, loads into fresh memory and copies back. Where the tensors of a
checkpoint are the rows of vLLM's parameters, as `engine_tensors` says, they can be copied to where they belong instead.
On CPU, where a linear layer multiplies by a packed copy, its tensors are packed from where they lie if they follow each
other there, as q, k and v do; else they are put together first. Nothing else is kept.

Nothing keeps a view of what it was given, so that the memory of a bucket may be used again after `put`.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from funicular.actors.engine_tensors import Part, multiplies_by_packed_copy, parts_in_use, piece
from funicular.actors.placed_models import ROW_BY_ROW


@dataclass(slots=True, eq=False)
class _Assembly:
    """The weight of a packed layer, until all of its tensors have arrived."""

    weight: torch.Tensor
    missing: set[str]


class Placement:
    """Places the tensors of one weight set after the other."""

    def __init__(self, model: Any) -> None:
        self._places: dict[str, list[tuple[str, Any, Part]]] = defaultdict(list)
        self._weights: dict[str, list[Part]] = defaultdict(list)
        for module_name, module, part in parts_in_use(model):
            self._places[part.tensor].append((module_name, module, part))
            if part.parameter == "weight":
                self._weights[module_name].append(part)
        self._spare: dict[torch.Size, torch.Tensor] = {}
        self.begin()

    def begin(self) -> None:
        """Forget what was under way: a whole weight set comes."""
        self._assemblies: dict[str, _Assembly] = {}
        self._packed: set[str] = set()
        self._outdated: dict[str, Any] = {}
        self.packing_seconds = 0.0
        """Spent since then on packing for matrix kernels."""

    @torch.no_grad()
    def put(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy this worker's pieces of tensors of the checkpoint to every place where they are used."""
        for name, tensor in tensors.items():
            for module_name, module, part in self._places[name]:
                parameter = getattr(module, part.parameter)
                source = piece(module, part, tensor)
                if parameter.numel() > 0:
                    _copy(parameter.data[part.rows][: source.shape[0]], source)  # rows beyond pad a vocabulary
                    if part.parameter == "weight" and multiplies_by_packed_copy(module):
                        self._outdated[module_name] = module
                elif module_name not in self._packed:
                    whole = self._where_it_lies(module_name, tensors)
                    if whole is None:
                        self._assemble(module_name, module, part, source)
                    else:
                        self._pack(module_name, module, whole)

    @torch.no_grad()
    def finish(self) -> None:
        """Pack what stands in real parameters and is multiplied as a packed copy: output heads, tied ones too."""
        for module in self._outdated.values():
            self._process(module)
        self._outdated.clear()

    def _where_it_lies(self, module_name: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """The whole weight of a layer as a view, if its tensors are among these, uncut, one right after the other."""
        parts = self._weights[module_name]
        if any(part.shards > 1 or part.tensor not in tensors for part in parts):
            return None
        pieces = [tensors[part.tensor] for part in parts]
        if any(first.data_ptr() + first.nbytes != second.data_ptr() for first, second in pairwise(pieces)):
            return None
        rows, width = sum(len(one) for one in pieces), pieces[0].shape[1]
        return pieces[0].as_strided((rows, width), (width, 1))

    def _assemble(self, module_name: str, module: Any, part: Part, source: torch.Tensor) -> None:
        parts = self._weights[module_name]
        if len(parts) == 1:
            self._pack(module_name, module, source.contiguous())
            return
        assembly = self._assemblies.get(module_name)
        if assembly is None:
            shape = torch.Size((module.output_size_per_partition, module.input_size_per_partition))
            weight = self._spare.pop(shape, None)
            weight = torch.empty(shape, dtype=source.dtype) if weight is None else weight
            assembly = _Assembly(weight, {part.tensor for part in parts})
            self._assemblies[module_name] = assembly
        assembly.weight[part.rows].copy_(source)
        assembly.missing.discard(part.tensor)
        if not assembly.missing:
            del self._assemblies[module_name]
            self._pack(module_name, module, assembly.weight)
            self._spare[assembly.weight.shape] = assembly.weight  # fresh memory would cost more than the copy into it

    def _pack(self, module_name: str, module: Any, weight: torch.Tensor) -> None:
        self._packed.add(module_name)
        module.weight = torch.nn.Parameter(weight, requires_grad=False)
        self._process(module)
        if module.weight.numel() > 0:
            module.weight.data = weight.clone()  # not packed after all: it may be a view of a bucket

    def _process(self, module: Any) -> None:
        began = time.perf_counter()
        module.quant_method.process_weights_after_loading(module)
        self.packing_seconds += time.perf_counter() - began


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    """By memcpy in one thread where types and layouts are equal: unlike torch's own copy it writes past the caches."""
    alike = target.dtype == source.dtype and target.is_contiguous() and source.is_contiguous()
    if alike and target.device.type == source.device.type == "cpu":
        np.copyto(target.view(torch.uint8).numpy(), source.view(torch.uint8).numpy())
    else:
        target.copy_(source)


def can_place(model: Any) -> bool:
    """Whether `Placement` knows where every tensor of this model belongs."""
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    plain = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod, type(None))
    return type(model).__name__ in ROW_BY_ROW and all(
        isinstance(getattr(module, "quant_method", None), plain) or not list(module.parameters(recurse=False))
        for module in model.modules()
    )
