"""Inside an engine worker: which tensors of the checkpoint its modules use, and what their values hash to.

vLLM fuses tensors (q, k and v below each other), cuts them over tensor-parallel workers, pads the vocabulary, and on
CPU multiplies by packed copies while the parameter is empty. Here each of these is undone by name and by row, so that
every worker reports in the words of the checkpoint; `weight_check.py` adds the workers up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from funicular.actors.checkpoint_names import checkpoint_name
from funicular.actors.fingerprint import fingerprint, values_fingerprint
from funicular.actors.weights import sampled_columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One tensor of the checkpoint, as far as one worker's module holds it."""

    tensor: str
    """Its name in the checkpoint."""
    shape: tuple[int, ...]
    """Of the whole tensor, over all workers."""
    parameter: str
    rows: slice
    """Where it stands in the module's parameter."""
    shard: int
    shards: int
    """The tensor is cut into `shards`; this worker holds number `shard`, which others may hold too."""


def expected_tensors(model: Any, dtype: torch.dtype) -> list[tuple[str, list[int], str]]:
    """(name, whole shape, dtype) of every tensor that the model needs; a tied head needs none of its own."""
    name = str(dtype).removeprefix("torch.")
    found = {part.tensor: (part.tensor, list(part.shape), name) for _, _, part in parts_in_use(model)}
    return list(found.values())


def observe(model: Any, dtype: torch.dtype, version: int, columns: int) -> list[tuple[str, str, str, int, int, int]]:
    """Fingerprint what this worker uses.

    Returns:
        (tensor, module, kind, shard, shards, fingerprint) rows. Kind `elements`: every element of a parameter.
        Kind `columns`: the columns that `sampled_columns` draws, read back from a packed copy.
    """
    rows = []
    read: dict[str, torch.Tensor] = {}
    whole: dict[tuple[int, int], int] = {}
    with torch.no_grad():
        for module_name, module, part in parts_in_use(model):
            parameter = getattr(module, part.parameter)
            if parameter.numel() > 0:
                place = (id(parameter), part.rows.start)
                if place not in whole:  # a tied head stands in the embedding's memory
                    whole[place] = fingerprint(_as_sent(parameter[part.rows], dtype))
                rows.append((part.tensor, module_name, "elements", part.shard, part.shards, whole[place]))
            if part.parameter == "weight" and multiplies_by_packed_copy(module):
                if module_name not in read:
                    read = {module_name: _read_columns(module, version, columns, dtype)}
                value = values_fingerprint(read[module_name][:, part.rows])
                rows.append((part.tensor, module_name, "columns", part.shard, part.shards, value))
    return rows


def embedding_weights(model: Any) -> dict[int, str]:
    """Name of the weight of each input embedding, by the parameter's identity: a tied head shares it."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    return {
        id(module.weight): f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
    }


def parts_in_use(model: Any) -> Iterator[tuple[str, Any, Part]]:
    """(module's name, module, part) of everything that this worker's model uses of the checkpoint."""
    embeddings = embedding_weights(model)
    named = checkpoint_name(model)
    for module_name, module in model.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            for part in _parts(model, module_name, module, parameter_name):
                tensor = embeddings.get(id(parameter), part.tensor)
                yield module_name, module, replace(part, tensor=named(tensor))


def piece(module: Any, part: Part, whole: torch.Tensor) -> torch.Tensor:
    """What this worker holds of a whole tensor of the checkpoint; the last piece of a padded vocabulary is shorter."""
    from vllm.model_executor.layers.linear import RowParallelLinear

    if isinstance(module, RowParallelLinear) and part.parameter == "weight":
        width = module.input_size_per_partition
        return whole[:, part.shard * width : (part.shard + 1) * width]
    rows = part.rows.stop - part.rows.start
    return whole[part.shard * rows : (part.shard + 1) * rows]


def _parts(model: Any, module_name: str, module: Any, parameter: str) -> Iterator[Part]:
    """The tensors of the checkpoint that one parameter holds, from its first row down."""
    prefix, _, own = module_name.removesuffix(".base_layer").rpartition(".")  # of a layer that has an adapter
    names = [own]
    cuts = _row_cuts(module, parameter)
    if len(cuts) > 1:
        names = list(model.packed_modules_mapping[own])
        if len(names) == 1:  # the checkpoint has it in one piece too; a worker holds a part of each of its cuts
            cuts = [(sum(rows for rows, *_ in cuts), sum(whole for _, whole, *_ in cuts), *cuts[0][2:])]
    width = _width(module, parameter)
    first = 0
    for name, (rows, whole_rows, shard, shards) in zip(names, cuts, strict=True):
        yield Part(
            tensor=".".join(filter(None, (prefix, name, parameter))),
            shape=(whole_rows, *width),
            parameter=parameter,
            rows=slice(first, first + rows),
            shard=shard,
            shards=shards,
        )
        first += rows


def _width(module: Any, parameter: str) -> tuple[int, ...]:
    """Of the whole tensor, all dimensions but rows; a packed parameter has none of its own any more."""
    from vllm.model_executor.layers.conv import ConvLayerBase

    if isinstance(module, ConvLayerBase):  # never packed, and never cut
        return tuple(getattr(module, parameter).shape[1:])
    return (module.input_size,) if parameter == "weight" and hasattr(module, "input_size") else ()


def _row_cuts(module: Any, parameter: str) -> list[tuple[int, int, int, int]]:
    """(rows here, rows of the whole tensor, shard, shards) of each tensor in a parameter."""
    from vllm.model_executor.layers.linear import (
        ColumnParallelLinear,
        MergedColumnParallelLinear,
        QKVParallelLinear,
        RowParallelLinear,
    )
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    if isinstance(module, QKVParallelLinear):
        rank, size, heads = module.tp_rank, module.tp_size, module.num_kv_heads
        copies = module.num_kv_head_replicas  # more workers than kv heads: neighbours hold the same ones
        kv = (rank // copies, size // copies)
        return [
            (module.num_heads * module.head_size, module.total_num_heads * module.head_size, rank, size),
            (heads * module.head_size, module.total_num_kv_heads * module.head_size, *kv),
            (heads * module.v_head_size, module.total_num_kv_heads * module.v_head_size, *kv),
        ]
    if isinstance(module, MergedColumnParallelLinear):
        return [(n // module.tp_size, n, module.tp_rank, module.tp_size) for n in module.output_sizes]
    if isinstance(module, ColumnParallelLinear):
        return [(module.output_size_per_partition, module.output_size, module.tp_rank, module.tp_size)]
    if isinstance(module, VocabParallelEmbedding):
        here, whole = module.num_embeddings_per_partition, module.org_vocab_size
        return [(here, whole, module.tp_rank, module.tp_size)]
    if isinstance(module, RowParallelLinear) and parameter == "weight":
        return [(module.output_size, module.output_size, module.tp_rank, module.tp_size)]
    rows = getattr(module, parameter).shape[0]
    return [(rows, rows, 0, 1)]


def multiplies_by_packed_copy(module: Any) -> bool:
    """On CPU linear layers and heads carry a packed copy, if there is a kernel to pack for.

    A linear layer that kept its weight has none. A head keeps its weight in any case; an input embedding carries a copy
    that nothing uses.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    if not hasattr(module, "cpu_linear"):
        return False
    if isinstance(module, VocabParallelEmbedding):
        return isinstance(module, ParallelLMHead)
    return module.weight.numel() == 0


def _read_columns(module: Any, version: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    """(columns, rows) of what a packed module multiplies by: a product with one-hot rows returns them exactly.

    Columns are drawn over the whole tensor's width; a worker that holds a part of it reads those of its part.
    """
    width, whole = module.input_size_per_partition, module.input_size
    first = module.tp_rank * width if width != whole else 0
    mine = [c - first for c in sampled_columns(whole, version, count) if first <= c < first + width]
    if not mine:
        return torch.zeros(0, module.output_size_per_partition, dtype=dtype)
    one_hot = torch.zeros(len(mine), width, dtype=dtype)
    one_hot[torch.arange(len(mine)), mine] = 1
    return module.cpu_linear(one_hot, module.weight, None)


def _as_sent(parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The parameter in the type it was sent in: CPU kernels of vLLM keep some bfloat16 biases as float32."""
    if parameter.dtype == dtype:
        return parameter
    sent = parameter.to(dtype)
    if not torch.equal(sent.to(parameter.dtype), parameter):
        raise RuntimeError(f"a {parameter.dtype} parameter holds values that {dtype} cannot; it was not sent so")
    return sent
