"""What vLLM 0.32 lacks or gets wrong, in one place; loaded in every engine worker through vLLM's own hooks.

* `register` is the `vllm.general_plugins` entry point: vLLM calls it in each of its processes.
* `ShmWeightTransferEngine` is a weight transfer engine for machines without GPUs: none of vLLM's own runs there.
* `WorkerExtension` adds methods to the workers that `collective_rpc` reaches by name.

Repairs, each with a test in tests/integration/test_generator.py:

1. A tied output head on CPU keeps its old packed weights after an update (0.32.0; 0.56 nat off, no error).
2. A failed update leaves half-received layers behind, which a resend would add to (0.32.0).
3. An update that nobody finished cannot be started again (0.32.0).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from funicular.actors.fingerprint import fingerprint, values_fingerprint
from funicular.actors.weights import sampled_columns

BACKEND = "funicular_shm"


def register() -> None:
    """Make the backend known to this process. vLLM may call it more than once."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, ShmWeightTransferEngine)


@dataclass
class ShmInitInfo(WeightTransferInitInfo):
    """Nothing to agree on beforehand."""


@dataclass
class ShmUpdateInfo(WeightTransferUpdateInfo):
    """Which tensors stand in the bucket that was opened last."""

    tensors: list[Any]
    """(name, shape, dtype, offset in bytes, bytes) each."""


class ShmWeightTransferEngine(WeightTransferEngine[ShmInitInfo, ShmUpdateInfo]):
    """Loads buckets that the generator wrote to /dev/shm, each into a file of its own.

    The loader keeps views of a bucket until a layer is complete. They keep the mapping alive, and the file is
    never written again, so the generator may unlink it as soon as `receive_weights` returns.
    """

    init_info_cls = ShmInitInfo
    update_info_cls = ShmUpdateInfo

    _bucket: torch.Tensor | None = None
    received: list[str]

    def init_transfer_engine(self, init_info: ShmInitInfo) -> None:
        self.received = []

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        self.received = []
        initialize_layerwise_reload(self.model)
        _forget_half_received_layers(self.model)

    def open_bucket(self, path: str, nbytes: int) -> int:
        """Map a bucket and return the xxh3_64 of its bytes as this worker sees them."""
        import xxhash

        self._bucket = torch.from_file(path, shared=True, size=nbytes, dtype=torch.uint8)
        return xxhash.xxh3_64_intdigest(self._bucket.numpy())

    def receive_weights(self, update_info: ShmUpdateInfo) -> None:
        bucket, self._bucket = self._bucket, None
        if bucket is None:
            raise RuntimeError("receive_weights before open_bucket")
        self.model.load_weights(self._tensors(bucket, update_info))
        self.received.extend(name for name, *_ in update_info.tensors)

    def _tensors(
        self, bucket: torch.Tensor, update_info: ShmUpdateInfo
    ) -> Iterator[tuple[str, torch.Tensor]]:
        for name, shape, dtype, offset, nbytes in update_info.tensors:
            tensor = bucket[offset : offset + nbytes].view(getattr(torch, dtype)).view(shape)
            yield name, tensor.to(self.device)

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        _repack_tied_head(self.model)

    def shutdown(self) -> None:
        self._bucket = None


def _forget_half_received_layers(model: torch.nn.Module) -> None:
    """Repair 2: drop what a failed update had buffered for layers that it did not complete."""
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    for layer in model.modules():
        info = get_layerwise_info(layer)
        info.loaded_weights = []
        info.load_numel = 0


def _repack_tied_head(model: torch.nn.Module) -> None:
    """Repair 1: the reload fills the shared parameter, but repacks it only for the embedding, never for the head."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    shared = {id(m.weight) for m in model.modules() if _is_input_embedding(m)}
    for module in model.modules():
        if isinstance(module, ParallelLMHead) and id(module.weight) in shared:
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)


def _is_input_embedding(module: torch.nn.Module) -> bool:
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    return isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)


class WorkerExtension:
    """Mixed into vLLM's worker class; every method is called by name through `collective_rpc`."""

    model_runner: Any
    weight_transfer_engine: Any
    vllm_config: Any

    def funicular_expected_tensors(self) -> list[tuple[str, list[int], str]]:
        """(Hugging Face name, whole shape, dtype) of every tensor that a weight set must hold."""
        dtype = _dtype_name(self.vllm_config.model_config.dtype)
        tensors = {}
        for piece in _pieces(self.model_runner.get_model()):
            tensors.setdefault(piece.tensor, (piece.tensor, list(piece.shape), dtype))
        return list(tensors.values())

    def funicular_abandon_update(self) -> None:
        """Repair 3: forget an update that was started and never finished."""
        if self._weight_update_active:
            self._weight_update_active = False
            self.weight_transfer_engine.reset_weight_update_target()

    def funicular_open_bucket(self, path: str, nbytes: int) -> int:
        """xxh3_64 of the bucket's bytes; the next `update_weights` loads from it."""
        return self.weight_transfer_engine.open_bucket(path, nbytes)

    def funicular_received(self) -> list[str]:
        """Names of the tensors loaded since the update was started."""
        return self.weight_transfer_engine.received

    def funicular_report(
        self, version: int, columns: int
    ) -> list[tuple[str, str, str, int, int, int]]:
        """Fingerprints of what this worker uses: the fields of `weight_check.Observation`."""
        model = self.model_runner.get_model()
        dtype = self.vllm_config.model_config.dtype
        rows = []
        packed: dict[int, torch.Tensor] = {}
        with torch.no_grad():
            for piece in _pieces(model):
                if piece.parameter.numel() > 0:
                    value = fingerprint(_as_loaded(piece.own_rows(piece.parameter), dtype))
                    rows.append((piece.tensor, piece.module_name, "elements", piece.shard, piece.shards, value))
                if piece.packed:
                    key = id(piece.module)
                    if key not in packed:
                        packed = {key: _read_columns(piece, version, columns, dtype)}
                    value = values_fingerprint(packed[key][:, piece.rows])
                    rows.append((piece.tensor, piece.module_name, "columns", piece.shard, piece.shards, value))
        return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """The part of one Hugging Face tensor that one worker's module holds."""

    tensor: str
    shape: tuple[int, ...]
    """Of the whole tensor, over all workers."""
    module_name: str
    module: torch.nn.Module
    parameter: torch.Tensor
    rows: slice
    """Of the module's parameter: a fused one holds several tensors below each other."""
    fused: bool
    shard: int
    shards: int
    """The tensor is cut into this many parts; this worker has number `shard`. Several may have the same."""
    packed: bool
    """The module multiplies by a packed copy, not by the parameter."""

    def own_rows(self, parameter: torch.Tensor) -> torch.Tensor:
        return parameter[self.rows] if self.fused else parameter


def _pieces(model: torch.nn.Module) -> Iterator[_Piece]:
    """Every tensor that the model uses, by its Hugging Face name; a tied head appears as the embedding's tensor."""
    tensor_of_parameter: dict[int, str] = {}
    for module_name, module in model.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            own_name = f"{module_name}.{parameter_name}"
            tied_to = tensor_of_parameter.setdefault(id(parameter), own_name)
            packed = (
                parameter_name == "weight" and hasattr(module, "cpu_linear") and not _is_input_embedding(module)
            )
            for part, rows, shape, shard, shards in _parts(model, module, parameter_name, parameter):
                prefix, _, last = module_name.rpartition(".")
                name = f"{prefix}.{part}.{parameter_name}" if part != last and prefix else own_name
                yield _Piece(
                    tensor=tied_to if tied_to != own_name else name,
                    shape=shape,
                    module_name=module_name,
                    module=module,
                    parameter=parameter,
                    rows=rows,
                    fused=part != last,
                    shard=shard,
                    shards=shards,
                    packed=packed,
                )


_Part = tuple[str, slice, tuple[int, ...], int, int]


def _parts(
    model: torch.nn.Module, module: Any, parameter_name: str, parameter: torch.Tensor
) -> Iterator[_Part]:
    """(name of the module in the checkpoint, rows, whole shape, shard, shards) of each tensor in a parameter."""
    from vllm.model_executor.layers.linear import (
        ColumnParallelLinear,
        MergedColumnParallelLinear,
        QKVParallelLinear,
        RowParallelLinear,
    )
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    own_name = next((n.rpartition(".")[2] for n, m in model.named_modules() if m is module), "")
    width: tuple[int, ...] = (module.input_size,) if parameter_name == "weight" and hasattr(module, "input_size") else ()
    everything = slice(None)
    if isinstance(module, QKVParallelLinear):
        replicas = module.num_kv_head_replicas
        kv = (module.tp_rank // replicas, module.tp_size // replicas)
        cuts = [
            (module.num_heads * module.head_size, module.total_num_heads * module.head_size, module.tp_rank, module.tp_size),
            (module.num_kv_heads * module.head_size, module.total_num_kv_heads * module.head_size, *kv),
            (module.num_kv_heads * module.v_head_size, module.total_num_kv_heads * module.v_head_size, *kv),
        ]
    elif isinstance(module, MergedColumnParallelLinear):
        cuts = [(n // module.tp_size, n, module.tp_rank, module.tp_size) for n in module.output_sizes]
    elif isinstance(module, ColumnParallelLinear):
        yield own_name, everything, (module.output_size, *width), module.tp_rank, module.tp_size
        return
    elif isinstance(module, VocabParallelEmbedding):
        yield own_name, everything, (module.org_vocab_size, *width), module.tp_rank, module.tp_size
        return
    elif isinstance(module, RowParallelLinear) and parameter_name == "weight":
        yield own_name, everything, (module.output_size, *width), module.tp_rank, module.tp_size
        return
    else:
        yield own_name, everything, tuple(parameter.shape), 0, 1
        return
    names = model.packed_modules_mapping.get(own_name, [own_name])
    start = 0
    for name, (rows, whole_rows, shard, shards) in zip(names, cuts, strict=True):
        yield name, slice(start, start + rows), (whole_rows, *width), shard, shards
        start += rows


def _read_columns(piece: _Piece, version: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    """(columns, rows) of what a packed module multiplies by: a product with one-hot rows returns them exactly.

    Columns are drawn over the whole tensor's width; a worker that holds a part of it reads those of its own.
    """
    module: Any = piece.module
    width = module.input_size_per_partition
    first = module.tp_rank * width if width != piece.shape[1] else 0
    wanted = [c - first for c in sampled_columns(piece.shape[1], version, count) if first <= c < first + width]
    one_hot = torch.zeros(len(wanted), width, dtype=dtype)
    one_hot[torch.arange(len(wanted)), wanted] = 1
    return module.cpu_linear(one_hot, module.weight, None)


def _as_loaded(parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The parameter in the type it was sent in: vLLM's CPU kernels keep some bfloat16 biases as float32."""
    sent = parameter.to(dtype)
    if not torch.equal(sent.to(parameter.dtype), parameter):
        raise RuntimeError(f"a parameter of type {parameter.dtype} holds values that are not {dtype}")
    return sent


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
