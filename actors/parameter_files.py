"""One file for each parameter and its optimizer state, written from, and read into, the shards of any ZeRO stage.

A file is written by one rank, which gets the other ranks' elements a chunk at a time: no parameter is whole in memory.
Each rank reads the elements of its own pieces.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import torch

from funicular.actors.optimizer_shards import Piece, Shard
from funicular.actors.tensor_file import TensorFile, TensorFileWriter

VALUE = "parameter"
"""Name of the parameter itself in its file."""
_CHUNK = 1 << 24
"""Elements of a parameter that are whole at a time: 64 MiB."""
_SUFFIX = ".safetensors"


def file_of(folder: Path, section: str, name: str) -> Path:
    """Where the tensors of a name stand."""
    return folder / section / f"{quote(name, safe='')}{_SUFFIX}"


def name_of(file: Path) -> str:
    """The name whose tensors stand in a file."""
    return unquote(file.name.removesuffix(_SUFFIX))


def state_of(
    optimizer: torch.optim.Optimizer, shard: Shard, *, whole: bool
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and scalars of one shard's optimizer state; none before the first step."""
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, Any] = {}
    for key, value in optimizer.state.get(shard.master, {}).items():
        if isinstance(value, torch.Tensor) and value.dim() == 0 and (shard.master.dim() or key == "step"):
            scalars[key] = {"value": value.item(), "dtype": str(value.dtype).removeprefix("torch.")}
        elif isinstance(value, torch.Tensor):
            if value.shape != shard.master.shape and not whole:
                raise ValueError(f"optimizer state {key!r}: shape {tuple(value.shape)} belongs to no parameter")
            tensors[key] = value
        elif isinstance(value, int | float):
            scalars[key] = {"value": value, "dtype": None}
        elif value is not None:
            raise ValueError(f"optimizer state {key!r}: only tensors and numbers are saved, not {type(value).__name__}")
    return tensors, scalars


def write_parameter(
    file: Path | None,
    shape: tuple[int, ...],
    tensors: Mapping[str, torch.Tensor],
    pieces: list[Piece],
    *,
    gather_to: int | None,
) -> None:
    """Write a parameter and its state, in float32.

    Args:
        file: None on ranks that do not write it.
        tensors: of the shard; element by element, or (without ZeRO) of any shape.
        pieces: of this parameter in the shard.
        gather_to: rank that gets the elements; None: it has them.
    """
    if file is None and gather_to is None:
        return
    per_element = {key: tensor.shape == tensors[VALUE].shape for key, tensor in tensors.items()}
    shapes = {key: shape if per_element[key] else tuple(tensor.shape) for key, tensor in tensors.items()}
    with (
        nullcontext()
        if file is None
        else TensorFileWriter(file, {key: (torch.float32, shape) for key, shape in shapes.items()}) as writer
    ):
        for key, tensor in tensors.items():
            flat = tensor.detach().view(-1)
            total = math.prod(shapes[key])
            parts = pieces if per_element[key] else [Piece(name=key, start=0, offset=0, count=total)]
            for begin in range(0, total, _CHUNK):
                chunk = _assemble(flat, parts, begin, min(_CHUNK, total - begin), gather_to)
                if writer is not None:
                    writer.write(chunk)


def _assemble(flat: torch.Tensor, pieces: list[Piece], begin: int, count: int, gather_to: int | None) -> torch.Tensor:
    """Elements `begin` to `begin + count` of a flattened parameter, as (count,) float32; whole on one rank only."""
    bits = torch.zeros(count, dtype=torch.int32, device=flat.device if gather_to is None else _wire_device())
    values = bits.view(torch.float32)
    for piece in pieces:
        first, last = max(begin, piece.start), min(begin + count, piece.start + piece.count)
        if first < last:
            source = flat[piece.offset + first - piece.start : piece.offset + last - piece.start]
            values[first - begin : last - begin].copy_(source)
    if gather_to is not None:
        # Each element comes from one rank; as integers, because -0.0 + 0.0 would be 0.0.
        torch.distributed.reduce(bits, dst=gather_to)
    return values


def _wire_device() -> torch.device:
    """Where tensors must be for the process group."""
    return torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")


def read_shard(folder: Path, entries: Mapping[str, Any], shard: Shard, optimizer: torch.optim.Optimizer) -> None:
    """Fill a shard and make its optimizer state."""
    first = entries[shard.names[0]]
    for name in shard.names:
        if any(entries[name][key] != first[key] for key in ("states", "scalars")):
            raise ValueError(
                f"{folder}: optimizer state of {name} is at another step than that of {shard.names[0]}, and this run's "
                "learner.zero_stage keeps one step for both; continue with learner.zero_stage=0"
            )
    files = {piece.name: TensorFile(file_of(folder, "parameters", piece.name)) for piece in shard.pieces}
    state: dict[str, Any] = {}
    for key in first["states"]:
        whole = next(
            (f.tensor(key) for name, f in files.items() if f.shape(key) != tuple(entries[name]["shape"])), None
        )
        state[key] = torch.zeros_like(shard.master) if whole is None else whole.to(shard.master.device)
    for key, tensor in {VALUE: shard.master, **state}.items():
        flat = tensor.detach().view(-1)
        for piece in shard.pieces:
            file = files[piece.name]
            if file.shape(key) != tuple(entries[piece.name]["shape"]):
                continue
            for done in range(0, piece.count, _CHUNK):
                count = min(_CHUNK, piece.count - done)
                elements = file.read(key, piece.start + done, count)
                flat[piece.offset + done : piece.offset + done + count].copy_(elements)
    for key, scalar in first["scalars"].items():
        dtype = scalar["dtype"]
        state[key] = torch.tensor(scalar["value"], dtype=getattr(torch, dtype)) if dtype else scalar["value"]
    optimizer.state.pop(shard.master, None)
    if state:
        optimizer.state[shard.master] = state
